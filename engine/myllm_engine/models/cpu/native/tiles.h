/* Integer products of 16 tokens with Intel's matrix tiles (AMX), where the CPU and the system offer them.
 *
 * The sums are the same integers as without, so the results are the same to the bit.
 */
#ifndef MYLLM_TILES_H
#define MYLLM_TILES_H

#include "linear.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define AT_ONCE 3      /* blocks; registers 0 to 5 hold their sums, of upper and of lower halves in turns */
#define TILE_INPUT 6   /* tile register of 16 tokens, half of 32 codes each */
#define TILE_WEIGHTS 7 /* of 8 quadruples of 16 rows */
#define MIN_TOKENS_FOR_TILES 9 /* a tile of fewer takes as long as a full one */

static int tiles_allowed;

/* Ask the system for the tiles' state; before any thread uses them. */
static void tiles_request(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    tiles_allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Set the calling thread's tiles up; until `tiles_end`. */
static void tiles_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 2 * AT_ONCE; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    shape.row_bytes[TILE_INPUT] = BLOCK, shape.rows[TILE_INPUT] = 16;
    shape.row_bytes[TILE_WEIGHTS] = 64, shape.rows[TILE_WEIGHTS] = 8;
    if (tiles_allowed) _tile_loadconfig(&shape);
}

static void tiles_end(void) {
    if (tiles_allowed) _tile_release();
}

#define SUM_HALF(tile, codes, dots)                                                                            \
    _tile_zero(tile);                                                                                          \
    _tile_loadd(TILE_INPUT, codes, CODE_BYTES);                                                                \
    if (format == Q4) _tile_dpbsud(tile, TILE_INPUT, TILE_WEIGHTS);                                            \
    else _tile_dpbssd(tile, TILE_INPUT, TILE_WEIGHTS);                                                         \
    _tile_stored(tile, dots, 64);

#define SUM_TILE(i, even, odd)                                                                                 \
    if (i < count) {                                                                                           \
        const int8_t *q = input->q + (at + (size_t)i * TILE) * CODE_BYTES;                                     \
        _tile_loadd(TILE_WEIGHTS, codes[i], 64);                                                               \
        SUM_HALF(even, q, upper[i])                                                                            \
        SUM_HALF(odd, q + BLOCK, lower[i])                                                                     \
    }

INLINE void product_tiles(const int format, const Linear *linear, int group, const Input *input, size_t at, f32x16 *out) {
    size_t first = (size_t)group * input->blocks;
    const uint8_t *weights = linear->weights + first * block_bytes(format);
    const uint16_t *scales = linear->scales + first * block_scales(format);
    u8x64 codes[AT_ONCE][8];
    i32x16 upper[AT_ONCE][TILE], lower[AT_ONCE][TILE];
    f32x16 sums[TILE];
#pragma GCC unroll 16
    for (int t = 0; t < TILE; t++) sums[t] = splat(0);
    for (int b = 0; b < input->blocks; b += AT_ONCE, at += AT_ONCE * TILE) {
        int count = input->blocks - b < AT_ONCE ? input->blocks - b : AT_ONCE;
        for (int i = 0; i < count; i++, weights += block_bytes(format))
            for (int j = 0; j < (format == Q4 ? 4 : 8); j++) {
                u8x64 all = *(const u8x64_any *)(weights + j * 64);
                if (format == Q4) {
                    codes[i][j] = all & 15;
                    codes[i][j + 4] = all >> 4;
                } else codes[i][j] = all ^ 0x80; /* signed again */
            }
        SUM_TILE(0, 0, 1)
        SUM_TILE(1, 2, 3)
        SUM_TILE(2, 4, 5)
        for (int i = 0; i < count; i++, scales += block_scales(format)) {
            f32x16 d = load_f16(scales), m;
            if (format == Q4) m = load_f16(scales + LANES);
            size_t place = at + (size_t)i * TILE;
#pragma GCC unroll 16
            for (int t = 0; t < TILE; t++) {
                i32x16 dot = (upper[i][t] << 8) + lower[i][t];
                sums[t] += to_float(dot) * (d * input->scale[place + t]);
                if (format == Q4) sums[t] += m * input->scaled_sum[place + t];
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < TILE; t++) out[t] = sums[t];
}
#undef SUM_TILE
#undef SUM_HALF

/* As `linear_tile`, with tiles where they help. */
static void linear_product(const Linear *linear, int group, const Input *input, int t0, int count, f32x16 *out) {
    if (!tiles_allowed || count < MIN_TOKENS_FOR_TILES || linear->format < Q8) {
        linear_tile(linear, group, input, t0, count, out);
        return;
    }
    /* A tile that is not full holds some earlier step's tokens as well, which nobody reads. */
    size_t at = input_place(input, t0, 0);
    if (linear->format == Q4) product_tiles(Q4, linear, group, input, at, out);
    else product_tiles(Q8, linear, group, input, at, out);
}

#else

static void tiles_request(void) {}
static void tiles_begin(void) {}
static void tiles_end(void) {}
#define linear_product linear_tile

#endif
#endif
