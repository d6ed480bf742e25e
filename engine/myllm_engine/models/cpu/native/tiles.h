/* Products of many tokens with matrix tiles, where the CPU and the system offer them; see `amx.h`.
 *
 * Q4 and Q8, some tokens: bytes, as in `linear.h`. The sums are the same integers, so the results are the same to the
 * bit. More tokens: a block's codes become a tile of bfloat16 once for all of them. Two products, with the input's
 * upper and lower halves, add up to the same integers in one tile, and what follows is less work for the vectors.
 * BF16: the input is rounded to 16 bits, and the tile adds up in an order of its own. So that a token's result does
 * not depend on its batch, a single token is multiplied the same way.
 */
#ifndef MYLLM_TILES_H
#define MYLLM_TILES_H

#include "linear.h"

#define GROUPS 4 /* of rows, that share a read of the tokens */
#define CHUNK 128 /* tokens that share an expansion of the weights; their input stays in the second-level cache */

#if HAS_TILES

/* ---- bytes ---- */

#define AT_ONCE 3 /* blocks; tiles 0 to 5 hold their sums, of upper and of lower halves in turns */
#define MIN_TOKENS_FOR_BYTES 9 /* a tile of fewer takes as long as a full one */

#define SUM_HALF(tile, codes, dots)                                                                            \
    TILE_ZERO(tile);                                                                                           \
    TILE_LOAD(6, codes, CODE_BYTES);                                                                           \
    TILE_DOT_BYTES(tile, 6, 7);                                                                                \
    TILE_STORE(tile, dots, 64);

#define SUM_TILE(i, even, odd)                                                                                 \
    if (i < count) {                                                                                           \
        const int8_t *q = input->q + (at + (size_t)i * TILE) * CODE_BYTES;                                     \
        TILE_LOAD(7, codes[i], 64);                                                                            \
        SUM_HALF(even, q, upper[i])                                                                            \
        SUM_HALF(odd, q + BLOCK, lower[i])                                                                     \
    }

/* One group with 16 tokens from place `at` on. */
INLINE void product_bytes(
    const int format, const Linear *linear, int group, const Input *input, size_t at, f32x16 *out) {
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

/* ---- pairs ---- */

#define EXPANDED 3 /* blocks: with the sums of as many they fill half of the first-level cache */

typedef uint16_t WeightTile[LANES * BLOCK];

/* What all tokens use of some blocks, and the sums of 16 of them. */
typedef struct {
    WeightTile tile[GROUPS][EXPANDED];
    f32x16 d[GROUPS][EXPANDED], m[GROUPS][EXPANDED];
    f32x16 dots[GROUPS][EXPANDED][TILE];
} __attribute__((aligned(64))) Expanded;

INLINE void expand(
    Expanded *to, const int format, const Linear *linear, int group, int groups, int blocks, int b0, int count) {
    for (int g = 0; g < groups; g++)
        for (int b = 0; b < count; b++) {
            size_t place = (size_t)(group + g) * blocks + b0 + b;
            const uint16_t *scales = linear->scales + place * block_scales(format);
            const uint8_t *weights = linear->weights + place * block_bytes(format);
            __builtin_prefetch(weights + AHEAD);
            if (format == Q4) expand_q4(weights, to->tile[g][b]);
            else expand_q8(weights, to->tile[g][b]);
            to->d[g][b] = load_f16(scales);
            if (format == Q4) to->m[g][b] = load_f16(scales + LANES);
        }
}

#define DOTS(g, weights)                                                                                       \
    if (g < groups) {                                                                                          \
        TILE_LOAD(weights, expanded->tile[g][b], 64);                                                          \
        TILE_ZERO(g);                                                                                          \
        TILE_DOT(g, 4, weights);                                                                               \
        TILE_DOT(g, 5, weights);                                                                               \
        TILE_STORE(g, expanded->dots[g][b], 64);                                                               \
    }

/* Add `count` blocks, from place `at` of the input on, of 16 tokens and all groups. First the tiles work, then the
 * vectors, which the CPU lets overlap the tiles of the next tokens. */
INLINE void add_blocks(
    const int format, Expanded *expanded, int groups, int count, const Input *input, size_t at, int is_first,
    f32x16 (*out)[CHUNK]) {
    const uint16_t *x = input->halves + at * 2 * BLOCK;
    for (int b = 0; b < count; b++, x += TILE * 2 * BLOCK) {
        TILE_LOAD(4, x, 2 * 64);
        TILE_LOAD(5, x + BLOCK, 2 * 64);
        DOTS(0, 6) DOTS(1, 7) DOTS(2, 6) DOTS(3, 7)
    }
    for (int g = 0; g < groups; g++) {
        f32x16 sums[TILE];
        const float *scale = input->scale + at, *scaled_sum = input->scaled_sum + at;
#pragma GCC unroll 16
        for (int t = 0; t < TILE; t++) sums[t] = is_first ? splat(0) : out[g][t];
        for (int b = 0; b < count; b++, scale += TILE, scaled_sum += TILE) {
            f32x16 d = expanded->d[g][b], m = expanded->m[g][b];
#pragma GCC unroll 16
            for (int t = 0; t < TILE; t++) {
                sums[t] += expanded->dots[g][b][t] * (d * scale[t]);
                if (format == Q4) sums[t] += m * scaled_sum[t];
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < TILE; t++) out[g][t] = sums[t];
    }
}
#undef DOTS

INLINE void product_codes(
    const int format, const Linear *linear, int group, int groups, const Input *input, int t0, int tokens,
    f32x16 (*out)[CHUNK]) {
    Expanded expanded;
    for (int b = 0; b < input->blocks; b += EXPANDED) {
        int count = input->blocks - b < EXPANDED ? input->blocks - b : EXPANDED;
        expand(&expanded, format, linear, group, groups, input->blocks, b, count);
        for (int t = 0; t < tokens; t += TILE)
            add_blocks(
                format, &expanded, groups, count, input, input_place(input, t0 + t, b), b == 0,
                (f32x16(*)[CHUNK])(out[0] + t)); /* from token t on */
    }
}

#define ADD_GROUPS(g, h)                                                                                       \
    if (g < groups) {                                                                                          \
        TILE_LOAD(6, weights[g], 64);                                                                          \
        weights[g] += LANES * BLOCK * 2;                                                                       \
        TILE_DOT(g, 4, 6);                                                                                     \
    }                                                                                                          \
    if (h < groups) {                                                                                          \
        TILE_LOAD(7, weights[h], 64);                                                                          \
        weights[h] += LANES * BLOCK * 2;                                                                       \
        TILE_DOT(h, 4, 7);                                                                                     \
    }                                                                                                          \
    if (g < groups) TILE_DOT(g, 5, 6);                                                                         \
    if (h < groups) TILE_DOT(h, 5, 7);
#define BEGIN_GROUP(g)                                                                                         \
    if (g < groups) TILE_ZERO(g);
#define END_GROUP(g)                                                                                           \
    if (g < groups) TILE_STORE(g, out[g] + t, 64);

static void product_bf16(
    const Linear *linear, int group, int groups, const Input *input, int t0, int tokens, f32x16 (*out)[CHUNK]) {
    int stride = input->tile == 1 ? 0 : 2 * 64;
    for (int t = 0; t < tokens; t += TILE) {
        const uint16_t *x = input->halves + input_place(input, t0 + t, 0) * 2 * BLOCK;
        const uint8_t *weights[GROUPS];
        size_t of_block = (size_t)input->tile * 2 * BLOCK;
        for (int g = 0; g < GROUPS; g++)
            weights[g] = linear->weights + (size_t)(group + g) * input->blocks * LANES * BLOCK * 2;
        BEGIN_GROUP(0) BEGIN_GROUP(1) BEGIN_GROUP(2) BEGIN_GROUP(3)
        for (int b = 0; b < input->blocks; b++, x += of_block) {
            for (size_t i = of_block; i < 2 * of_block; i += BLOCK) __builtin_prefetch(x + i);
            TILE_LOAD(4, x, stride);
            TILE_LOAD(5, x + BLOCK, stride);
            ADD_GROUPS(0, 1) ADD_GROUPS(2, 3)
        }
        END_GROUP(0) END_GROUP(1) END_GROUP(2) END_GROUP(3)
    }
}
#undef ADD_GROUPS
#undef BEGIN_GROUP
#undef END_GROUP

#endif

/* Multiply `groups` (at most GROUPS) groups of 16 rows with `tokens` (at most CHUNK) tokens from `t0`, a multiple of
 * CHUNK, on; `out[g][t]` are 16 rows. What of a last tile of tokens is not asked for holds anything. */
static void linear_product(
    const Linear *linear, int group, int groups, const Input *input, int is_tiled, int t0, int tokens,
    f32x16 (*out)[CHUNK]) {
#if HAS_TILES
    if (is_tiled) {
        tiles_shape(PAIRS);
        if (linear->format == Q4) product_codes(Q4, linear, group, groups, input, t0, tokens, out);
        else if (linear->format == Q8) product_codes(Q8, linear, group, groups, input, t0, tokens, out);
        else product_bf16(linear, group, groups, input, t0, tokens, out);
        return;
    }
    if (tiles_allowed && linear->format >= Q8 && tokens >= MIN_TOKENS_FOR_BYTES) tiles_shape(BYTES);
#endif
    for (int g = 0; g < groups; g++)
        for (int t = 0; t < tokens; t += TILE) {
            int count = tokens - t < TILE ? tokens - t : TILE;
#if HAS_TILES
            /* A tile that is not full holds some earlier step's tokens as well, which nobody reads. */
            if (tiles_allowed && linear->format >= Q8 && count >= MIN_TOKENS_FOR_BYTES) {
                size_t at = input_place(input, t0 + t, 0);
                if (linear->format == Q4) product_bytes(Q4, linear, group + g, input, at, out[g] + t);
                else product_bytes(Q8, linear, group + g, input, at, out[g] + t);
                continue;
            }
#endif
            linear_tile(linear, group + g, input, t0 + t, count, out[g] + t);
        }
}

#endif
