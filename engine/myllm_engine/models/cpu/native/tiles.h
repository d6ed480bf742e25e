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

#define TILE_INPUT 4   /* tile register of 16 tokens, 32 codes each */
#define TILE_WEIGHTS 5 /* of 8 quadruples of 16 rows; registers 0 to 3 hold sums */
#define AT_ONCE 4
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
    for (int i = 0; i < AT_ONCE; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    shape.row_bytes[TILE_INPUT] = BLOCK, shape.rows[TILE_INPUT] = 16;
    shape.row_bytes[TILE_WEIGHTS] = 64, shape.rows[TILE_WEIGHTS] = 8;
    if (tiles_allowed) _tile_loadconfig(&shape);
}

static void tiles_end(void) {
    if (tiles_allowed) _tile_release();
}

#define SUM_TILE(i)                                                                                            \
    if (i < count) {                                                                                           \
        _tile_zero(i);                                                                                         \
        _tile_loadd(TILE_INPUT, input->q + (at + (size_t)i * TILE) * BLOCK, BLOCK);                            \
        _tile_loadd(TILE_WEIGHTS, codes[i], 64);                                                               \
        if (format == Q4) _tile_dpbsud(i, TILE_INPUT, TILE_WEIGHTS);                                           \
        else _tile_dpbssd(i, TILE_INPUT, TILE_WEIGHTS);                                                        \
        _tile_stored(i, dots[i], 64);                                                                          \
    }

INLINE void product_tiles(const int format, const Linear *linear, int group, const Input *input, size_t at, f32x16 *out) {
    size_t first = (size_t)group * input->blocks;
    const uint8_t *weights = linear->weights + first * block_bytes(format);
    const uint16_t *scales = linear->scales + first * block_scales(format);
    u8x64 codes[AT_ONCE][8];
    i32x16 dots[AT_ONCE][TILE];
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
        SUM_TILE(0)
        SUM_TILE(1)
        SUM_TILE(2)
        SUM_TILE(3)
        for (int i = 0; i < count; i++, scales += block_scales(format)) {
            f32x16 d = load_f16(scales), m;
            if (format == Q4) m = load_f16(scales + LANES);
            size_t place = at + (size_t)i * TILE;
#pragma GCC unroll 16
            for (int t = 0; t < TILE; t++) {
                sums[t] += to_float(dots[i][t]) * (d * input->scale[place + t]);
                if (format == Q4) sums[t] += m * input->scaled_sum[place + t];
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < TILE; t++) out[t] = sums[t];
}
#undef SUM_TILE

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
