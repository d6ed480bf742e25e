/* Products of many tokens with matrix tiles, where the CPU and the system offer them; see `amx.h`.
 *
 * Q4 and Q8: a block's codes become a tile of bfloat16 once for all tokens. Two tile products, with the input's upper
 * and lower halves, give the very integer sums that `linear.h` computes, and what follows is the same arithmetic:
 * so are the results, to the bit.
 * BF16: the input is rounded to 16 bits, and the tile adds up in an order of its own. So that a token's result does
 * not depend on its batch, a single token is multiplied the same way.
 */
#ifndef MYLLM_TILES_H
#define MYLLM_TILES_H

#include "linear.h"

#define GROUPS 4 /* of rows, that share a read of the tokens */
#define CHUNK 128 /* tokens that share an expansion of the weights; their input stays in the second-level cache */

#if HAS_TILES

#ifndef EXPANDED
#define EXPANDED 3
#endif
// /* blocks; of GROUPS groups they fill half of the first-level cache */

typedef uint16_t WeightTile[LANES * BLOCK];

/* What is used of a group and block for all tokens. */
typedef struct {
    WeightTile tile[GROUPS][EXPANDED];
    f32x16 d[GROUPS][EXPANDED], m[GROUPS][EXPANDED];
    f32x16 dots[GROUPS][EXPANDED][TILE];
} __attribute__((aligned(64))) Expanded;

INLINE void expand(Expanded *to, const int format, const Linear *linear, int group, int groups, int blocks, int b0, int count) {
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

/* Add `count` blocks, from place `at` of the input on, of 16 tokens and all groups. */
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
                (f32x16(*)[CHUNK])(out[0] + t));
    }
}

#define ADD_GROUP(g, first)                                                                                    \
    if (g < groups) {                                                                                          \
        TILE_LOAD(6, weights[g], 64);                                                                          \
        TILE_DOT(g, 4, 6);                                                                                     \
        TILE_DOT(g, 5, 6);                                                                                     \
        weights[g] += LANES * BLOCK * 2;                                                                       \
    }
#define BEGIN_GROUP(g)                                                                                         \
    if (g < groups) {                                                                                          \
        if (b0 == 0) TILE_ZERO(g);                                                                             \
        else TILE_LOAD(g, out[g] + t, 64);                                                                     \
    }
#define END_GROUP(g)                                                                                           \
    if (g < groups) TILE_STORE(g, out[g] + t, 64);

static void product_bf16(
    const Linear *linear, int group, int groups, const Input *input, int t0, int tokens, f32x16 (*out)[CHUNK]) {
    int span = tokens > TILE ? EXPANDED : input->blocks, stride = input->tile == 1 ? 0 : 2 * 64;
    for (int b0 = 0; b0 < input->blocks; b0 += span)
        for (int t = 0; t < tokens; t += TILE) {
            const uint16_t *x = input->halves + input_place(input, t0 + t, b0) * 2 * BLOCK;
            const uint8_t *weights[GROUPS];
            for (int g = 0; g < GROUPS; g++)
                weights[g] = linear->weights + ((size_t)(group + g) * input->blocks + b0) * LANES * BLOCK * 2;
            BEGIN_GROUP(0) BEGIN_GROUP(1) BEGIN_GROUP(2) BEGIN_GROUP(3)
            for (int b = b0; b < b0 + span && b < input->blocks; b++, x += input->tile * 2 * BLOCK) {
                TILE_LOAD(4, x, stride);
                TILE_LOAD(5, x + BLOCK, stride);
                ADD_GROUP(0, 4) ADD_GROUP(1, 4) ADD_GROUP(2, 4) ADD_GROUP(3, 4)
            }
            END_GROUP(0) END_GROUP(1) END_GROUP(2) END_GROUP(3)
        }
}
#undef ADD_GROUP
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
        if (linear->format == Q4) product_codes(Q4, linear, group, groups, input, t0, tokens, out);
        else if (linear->format == Q8) product_codes(Q8, linear, group, groups, input, t0, tokens, out);
        else product_bf16(linear, group, groups, input, t0, tokens, out);
        return;
    }
#endif
    for (int g = 0; g < groups; g++)
        for (int t = 0; t < tokens; t += TILE)
            linear_tile(linear, group + g, input, t0 + t, tokens - t < TILE ? tokens - t : TILE, out[g] + t);
}

#endif
