/* Products with weights that lie in groups of 16 output rows, interleaved so that a vector has one lane a row.
 *
 * Columns go in blocks of 32. Per group and block:
 *   F32   32 vectors: column k of the 16 rows
 *   BF16  16 vectors of pairs: columns 2k, 2k+1 of each row
 *   Q8     8 vectors of quadruples, unsigned (code + 128); scale d: weight = d * code
 *   Q4     4 vectors: quadruple j in the low halves, j + 4 in the high ones; weight = d * code + m
 * Scales are half floats in an array of their own, 16 a block (Q4: 16 d, then 16 m).
 *
 * Q4 and Q8 multiply integers: the input is rounded to 16 bits, a scale per 32 values, and its upper and lower
 * halves take an instruction each, which multiply bytes. (With 8 bits alone, as in llama.cpp, the rounding of the
 * input costs more than that of the weights.) The integer sums are exact, and a token's result does not depend on
 * the others in the batch.
 */
#ifndef MYLLM_LINEAR_H
#define MYLLM_LINEAR_H

#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "amx.h"
#include "vectors.h"

#define BLOCK 32
#define AHEAD 4096 /* bytes of weights asked for ahead: the CPU's own look-ahead ends with a memory page */
/* Tokens that share a read of the weights: as many as the registers hold sums of. */
#ifdef __AVX512F__
#define TILE 16
#else
#define TILE 4
#endif

/* Tokens that pay for the expansion of codes to bfloat16; 8-bit codes, which bytes hold as they are, need more. */
#define MIN_TOKENS_FOR_PAIRS(format) ((format) == Q4 ? 17 : 33)

#define CODE_BYTES (2 * BLOCK) /* of a block of a token: 32 upper halves, then 32 lower */
#define MOST_CODE (127 * 256)  /* both halves are signed: code = 256 * upper + lower */

enum { F32, BF16, Q8, Q4 };
enum { FROM_FLOAT, FROM_Q4_0, FROM_Q4_1, FROM_Q8_0 };

typedef struct {
    int32_t format, rows, cols, reserved;
    uint8_t *weights;
    uint16_t *scales;
    const float *bias; /* [rows], or NULL */
} Linear;

/* The input of a product: tokens in tiles of `tile` (TILE, or 1 for a single token), blocks of 32 values of a
 * tile's tokens after each other. `x` for F32 and BF16, or for matrix tiles `halves`: 32 upper, 32 lower; else the
 * codes' halves `q`. With Q4 and Q8 also, for each block of a token, the scale, the sum of the codes and their
 * product. */
typedef struct {
    int blocks, tile;
    union {
        float *x;
        uint16_t *halves;
    };
    int8_t *q;
    float *scale, *scaled_sum;
    int32_t *sum;
} Input;

INLINE size_t input_place(const Input *input, int t, int b) {
    return ((size_t)(t / input->tile) * input->blocks + b) * input->tile + t % input->tile;
}
INLINE int linear_blocks(const Linear *linear) { return (linear->cols + BLOCK - 1) / BLOCK; }
INLINE int linear_groups(const Linear *linear) { return (linear->rows + LANES - 1) / LANES; }
INLINE size_t block_bytes(int format) {
    return LANES * BLOCK * 4 / (format == F32 ? 1 : format == BF16 ? 2 : format == Q8 ? 4 : 8);
}
INLINE size_t block_scales(int format) { return format == Q4 ? 32 : format == Q8 ? 16 : 0; }

static void *allocate(size_t bytes) {
    void *memory = NULL;
    size_t align = bytes >= 1 << 21 ? 1 << 21 : 64;
    if (posix_memalign(&memory, align, bytes + 64) != 0) return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= 1 << 21) madvise(memory, bytes, MADV_HUGEPAGE); /* fewer misses of address translation */
#endif
    memset(memory, 0, bytes + 64);
    return memory;
}

/* ---- packing ---- */

/* Find codes and scales of 32 floats; returns what is left as they are read back. */
static void quantize_weights(const float *values, int format, uint8_t *codes, uint16_t *d, uint16_t *m) {
    float least = values[0], most = values[0];
    for (int k = 1; k < BLOCK; k++) {
        least = values[k] < least ? values[k] : least;
        most = values[k] > most ? values[k] : most;
    }
    if (format == Q8) least = -(most = most > -least ? most : -least);
    *d = to_f16((most - least) / (format == Q8 ? 254 : 15));
    *m = to_f16(least);
    float scale = from_f16(*d), zero = format == Q8 ? -128 * scale : from_f16(*m);
    int last = format == Q8 ? 255 : 15;
    for (int k = 0; k < BLOCK; k++) {
        float code = scale > 0 ? (values[k] - zero) / scale + 0.5f : format == Q8 ? 128 : 0;
        codes[k] = (uint8_t)(code < 0 ? 0 : code > last ? last : code);
    }
}

/* Read the codes and scales of one GGUF block (ggml-common.h: block_q4_0, block_q4_1, block_q8_0). */
static void read_gguf(const uint8_t *block, int kind, uint8_t *codes, uint16_t *d, uint16_t *m) {
    memcpy(d, block, 2);
    if (kind == FROM_Q8_0) {
        for (int k = 0; k < BLOCK; k++) codes[k] = block[2 + k] ^ 0x80;
        return;
    }
    if (kind == FROM_Q4_1) memcpy(m, block + 2, 2);
    else *m = to_f16(-8 * from_f16(*d));
    const uint8_t *halves = block + (kind == FROM_Q4_1 ? 4 : 2);
    for (int k = 0; k < 16; k++) {
        codes[k] = halves[k] & 15;
        codes[k + 16] = halves[k] >> 4;
    }
}

/* Lay `[rows, cols]` weights out: floats, or GGUF's blocks, whose `cols` is a multiple of 32. Fills
 * `weights` and `scales`; returns 0, or -1 when there is no memory. */
int linear_pack(Linear *linear, const void *source, int kind) {
    int format = linear->format, blocks = linear_blocks(linear), groups = linear_groups(linear);
    size_t each = block_bytes(format), scales = block_scales(format), total = (size_t)groups * blocks;
    size_t gguf = kind == FROM_Q4_0 ? 18 : kind == FROM_Q4_1 ? 20 : 34;
    linear->weights = allocate(total * each);
    linear->scales = allocate(total * scales * 2 + 64);
    if (!linear->weights || !linear->scales) return -1;
    for (int row = 0; row < linear->rows; row++)
        for (int b = 0; b < blocks; b++) {
            size_t place = (size_t)(row / LANES) * blocks + b;
            int lane = row % LANES;
            uint8_t *to = linear->weights + place * each, codes[BLOCK];
            uint16_t *scale = linear->scales + place * scales + lane, d = 0, m = 0;
            if (kind == FROM_FLOAT) {
                float values[BLOCK] = {0};
                int count = linear->cols - b * BLOCK < BLOCK ? linear->cols - b * BLOCK : BLOCK;
                memcpy(values, (const float *)source + (size_t)row * linear->cols + b * BLOCK, count * 4);
                for (int k = 0; k < BLOCK && format == F32; k++) ((float *)to)[k * LANES + lane] = values[k];
                for (int k = 0; k < BLOCK && format == BF16; k++)
                    ((uint16_t *)to)[(k / 2 * LANES + lane) * 2 + k % 2] = to_bf16(values[k]);
                if (format <= BF16) continue;
                quantize_weights(values, format, codes, &d, &m);
            } else {
                read_gguf((const uint8_t *)source + ((size_t)row * blocks + b) * gguf, kind, codes, &d, &m);
            }
            scale[0] = d;
            if (format == Q4) scale[LANES] = m;
            for (int k = 0; k < BLOCK; k++) {
                int j = k / 4, i = lane * 4 + k % 4;
                if (format == Q8) to[j * 64 + i] = codes[k];
                else to[j % 4 * 64 + i] |= (uint8_t)(codes[k] << (j / 4 * 4));
            }
        }
    return 0;
}

void linear_free(Linear *linear) {
    free(linear->weights);
    free(linear->scales);
    linear->weights = NULL;
    linear->scales = NULL;
}

/* Write row `row` as floats, `[cols]`. */
void linear_row(const Linear *linear, int row, float *to) {
    int format = linear->format, blocks = linear_blocks(linear), lane = row % LANES;
    size_t each = block_bytes(format), scales = block_scales(format);
    for (int b = 0; b < blocks; b++) {
        size_t place = (size_t)(row / LANES) * blocks + b;
        const uint8_t *from = linear->weights + place * each;
        const uint16_t *scale = linear->scales + place * scales + lane;
        float d = format >= Q8 ? from_f16(scale[0]) : 0, m = format == Q4 ? from_f16(scale[LANES]) : 0;
        for (int k = 0; k < BLOCK && b * BLOCK + k < linear->cols; k++) {
            int j = k / 4, i = lane * 4 + k % 4;
            float *value = to + b * BLOCK + k;
            if (format == F32) *value = ((const float *)from)[k * LANES + lane];
            else if (format == BF16) {
                uint32_t bits = (uint32_t)((const uint16_t *)from)[(k / 2 * LANES + lane) * 2 + k % 2] << 16;
                memcpy(value, &bits, 4);
            } else if (format == Q8) *value = d * (from[j * 64 + i] - 128);
            else *value = d * (from[j % 4 * 64 + i] >> (j / 4 * 4) & 15) + m;
        }
    }
}

/* ---- input ---- */

/* Store the halves of 16 codes. */
INLINE void store_codes(int8_t *upper, i32x16 codes) {
    i32x16 above = (codes + 128) >> 8;
    *(i8x16_any *)upper = __builtin_convertvector(above, i8x16);
    *(i8x16_any *)(upper + BLOCK) = __builtin_convertvector(codes - (above << 8), i8x16);
}

/* Whether products of `tokens` tokens use matrix tiles of bfloat16. With few, codes are better multiplied as bytes,
 * for the same result; with BF16 the result is another one, and all must take the same way. */
INLINE int uses_tiles(int format, int tokens) {
    return tiles_allowed && format != F32 && (format == BF16 || tokens >= MIN_TOKENS_FOR_PAIRS(format));
}

/* Round 32 floats to 16 bits; all to 0 where the largest is so small that the scale's inverse is no float. */
static void quantize_block(const Input *input, int is_tiled, size_t place, f32x16 first, f32x16 second) {
    float most = max_lanes(max_each(abs_each(first), abs_each(second)));
    float inverse = most > 1e-33f ? MOST_CODE / most : 0, scale = most / MOST_CODE;
    i32x16 low = round_to_int(first * inverse), high = round_to_int(second * inverse);
    int32_t sum = sum_lanes_int(low + high);
#if HAS_TILES
    if (is_tiled) store_codes_tiled(input->halves + place * 2 * BLOCK, low, high);
#endif
    if (!is_tiled) {
        store_codes(input->q + place * CODE_BYTES, low);
        store_codes(input->q + place * CODE_BYTES + LANES, high);
    }
    input->scale[place] = scale;
    input->sum[place] = sum;
    input->scaled_sum[place] = scale * (float)sum;
}

/* Store block `b` of token `t` in the form that weights of `format` are multiplied with, `is_tiled` by tiles. */
INLINE void input_block(const Input *input, int format, int is_tiled, int t, int b, f32x16 first, f32x16 second) {
    size_t place = input_place(input, t, b);
    if (format >= Q8) {
        quantize_block(input, is_tiled, place, first, second);
        return;
    }
#if HAS_TILES
    if (is_tiled) {
        store_floats(input->halves + place * 2 * BLOCK, first, second);
        return;
    }
#endif
    store(input->x + place * BLOCK, first);
    store(input->x + place * BLOCK + LANES, second);
}

/* ---- products ---- */

/* `tokens` neighbours of one tile, the first at `place` in block 0; `tile` as in the input. */
INLINE void product_float(
    const int tokens, const int tile, const int format, const uint8_t *weights, const Input *input,
    size_t place, f32x16 *out) {
    const float *x = input->x + place * BLOCK;
    f32x16 sums[TILE];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) sums[t] = splat(0);
    for (int b = 0; b < input->blocks; b++, x += tile * BLOCK)
        for (int k = 0; k < BLOCK; k += 2, weights += 2 * LANES * (format == F32 ? 4 : 2)) {
            f32x16 even, odd;
            if (format == F32) {
                even = load((const float *)weights);
                odd = load((const float *)weights + LANES);
            } else {
                u32x16 pairs = *(const u32x16_any *)weights;
                even = (f32x16)(pairs << 16);
                odd = (f32x16)(pairs & 0xffff0000);
            }
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++) sums[t] += even * x[t * BLOCK + k];
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++) sums[t] += odd * x[t * BLOCK + k + 1];
        }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) out[t] = sums[t];
}

#define TOGETHER 4 /* tokens whose sums, two each, grow at once: each addition waits for the one before */

INLINE void product_int(
    const int tokens, const int tile, const int format, const uint8_t *weights, const uint16_t *scales,
    const Input *input, size_t place, f32x16 *out) {
    const int together = tokens < TOGETHER ? tokens : TOGETHER;
    f32x16 sums[TILE];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) sums[t] = splat(0);
    for (int b = 0; b < input->blocks; b++, place += tile) {
        const int8_t *q = input->q + place * CODE_BYTES;
        u8x64 w[8];
        f32x16 d = load_f16(scales), m;
        if (format == Q4) {
            m = load_f16(scales + LANES);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                u8x64 both = *(const u8x64_any *)(weights + j * 64);
                w[j] = both & 15;
                w[j + 4] = both >> 4;
            }
        } else {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) w[j] = *(const u8x64_any *)(weights + j * 64);
        }
        __builtin_prefetch(weights + AHEAD);
        weights += block_bytes(format);
        scales += block_scales(format);
#pragma GCC unroll 16
        for (int t0 = 0; t0 < tokens; t0 += together) {
            i32x16 upper[TOGETHER], lower[TOGETHER];
#pragma GCC unroll 4
            for (int i = 0; i < together; i++) {
                upper[i] = splat_int(0);
                lower[i] = splat_int(format == Q4 ? 0 : -128 * input->sum[place + t0 + i]);
            }
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++)
#pragma GCC unroll 4
                for (int i = 0; i < together; i++) {
                    int32_t four[2];
                    memcpy(&four[0], q + (t0 + i) * CODE_BYTES + 4 * j, 4);
                    memcpy(&four[1], q + (t0 + i) * CODE_BYTES + BLOCK + 4 * j, 4);
                    upper[i] = dot4(upper[i], w[j], four[0]);
                    lower[i] = dot4(lower[i], w[j], four[1]);
                }
#pragma GCC unroll 4
            for (int i = 0; i < together; i++) {
                i32x16 dot = (upper[i] << 8) + lower[i]; /* 31 bits hold it: 32 * 255 * MOST_CODE */
                sums[t0 + i] += to_float(dot) * (d * input->scale[place + t0 + i]);
                if (format == Q4) sums[t0 + i] += m * input->scaled_sum[place + t0 + i];
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) out[t] = sums[t];
}

#define PRODUCT(name, tokens, tile)                                                                            \
    static void product_##name(const Linear *linear, int group, const Input *input, size_t at, f32x16 *out) {  \
        size_t place = (size_t)group * input->blocks;                                                          \
        const uint8_t *weights = linear->weights + place * block_bytes(linear->format);                        \
        const uint16_t *scales = linear->scales + place * block_scales(linear->format);                        \
        if (linear->format == Q4) product_int(tokens, tile, Q4, weights, scales, input, at, out);              \
        else if (linear->format == Q8) product_int(tokens, tile, Q8, weights, scales, input, at, out);         \
        else if (linear->format == BF16) product_float(tokens, tile, BF16, weights, input, at, out);           \
        else product_float(tokens, tile, F32, weights, input, at, out);                                        \
    }
PRODUCT(single, 1, 1)
PRODUCT(1, 1, TILE)
PRODUCT(2, 2, TILE)
PRODUCT(4, 4, TILE)
#if TILE > 4
PRODUCT(8, 8, TILE)
PRODUCT(16, 16, TILE)
#endif

/* Multiply one group of 16 rows with `count` (at most TILE) tokens from `t0`, a multiple of TILE, on;
 * `out[t]` are their 16 rows. */
static void linear_tile(const Linear *linear, int group, const Input *input, int t0, int count, f32x16 *out) {
    size_t at = input_place(input, t0, 0);
    while (count > 0) {
        int done = count >= TILE ? TILE : count >= 8 ? 8 : count >= 4 ? 4 : count >= 2 ? 2 : 1;
        if (input->tile == 1) product_single(linear, group, input, at, out);
        else if (done == 1) product_1(linear, group, input, at, out);
        else if (done == 2) product_2(linear, group, input, at, out);
        else if (done == 4) product_4(linear, group, input, at, out);
#if TILE > 4
        else if (done == 8) product_8(linear, group, input, at, out);
        else product_16(linear, group, input, at, out);
#endif
        at += done;
        out += done;
        count -= done;
    }
}

#endif
