/* Intel's matrix tiles (AMX): the instructions, leave to use them, and values in the form that they multiply.
 *
 * A tile product multiplies 16 tokens with 16 rows over 32 columns, pairs of bfloat16, and adds to float32. It sums
 * from zero and adds the sum to what the tile held (Intel's manual, TDPBF16PS): sums of integers below 2^24 are
 * exact.
 */
#ifndef MYLLM_AMX_H
#define MYLLM_AMX_H

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__AVX512BW__) &&         \
    defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>

static int tiles_allowed;

/* Ask the system for the tiles' state; before any thread uses them. */
static void tiles_request(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    tiles_allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* The compiler's own functions do not tell it that memory is read and written: GCC 12 then leaves stores out. */
#define TILE_LOAD(tile, from, stride)                                                                          \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((long)(stride)) : "memory")
#define TILE_STORE(tile, to, stride)                                                                           \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((long)(stride)) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_DOT(sums, input, weights)                                                                         \
    __asm__ volatile("tdpbf16ps %%tmm" #weights ", %%tmm" #input ", %%tmm" #sums ::)

#define TILE_DOT_BYTES(sums, input, weights)                                                                   \
    __asm__ volatile("tdpbssd %%tmm" #weights ", %%tmm" #input ", %%tmm" #sums ::)

enum { NO_SHAPE, PAIRS, BYTES, HALVES };
static _Thread_local int tiles_shaped;

/* Set the calling thread's tiles up, until `tiles_end`: all of 16 rows of 64 bytes, but for BYTES tile 6 holds 16
 * rows of 32 and tile 7 8 rows, and for HALVES tile 5 holds 16 rows of 32 and tile 7 8 rows. */
static void tiles_shape(int kind) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    if (kind == tiles_shaped) return;
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    if (kind == BYTES) shape.row_bytes[6] = 32, shape.rows[7] = 8;
    if (kind == HALVES) shape.row_bytes[5] = 32, shape.rows[7] = 8;
    __asm__ volatile("ldtilecfg %0" ::"m"(shape) : "memory");
    tiles_shaped = kind;
}

static void tiles_end(void) {
    if (tiles_shaped != NO_SHAPE) __asm__ volatile("tilerelease" ::);
    tiles_shaped = NO_SHAPE;
}

/* The columns of a block in the order in which `expand_q4` finds their codes. */
static const uint16_t TILE_ORDER[32] = {
    0, 2, 16, 18, 1, 3, 17, 19, 4, 6, 20, 22, 5, 7, 21, 23,
    8, 10, 24, 26, 9, 11, 25, 27, 12, 14, 28, 30, 13, 15, 29, 31,
};

INLINE __m512i as_bf16(f32x16 first, f32x16 second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

/* Store a block of 32 floats as bfloat16, and what that leaves as bfloat16: 16 bits together. */
INLINE void store_floats(uint16_t *to, f32x16 first, f32x16 second) {
    __m512i upper = as_bf16(first, second);
    f32x16 low = (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(upper)), 16);
    f32x16 high = (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(upper, 1)), 16);
    _mm512_storeu_si512(to, upper);
    _mm512_storeu_si512(to + 32, as_bf16(first - low, second - high));
}

/* Store a block's codes as two numbers each, 256 * upper and lower, which bfloat16 holds exactly. */
INLINE void store_codes_tiled(uint16_t *to, i32x16 first, i32x16 second) {
    __m512i order = _mm512_loadu_si512(TILE_ORDER);
    i32x16 low = (first + 128) & ~255, high = (second + 128) & ~255;
    __m512i upper = as_bf16(to_float(low), to_float(high));
    __m512i lower = as_bf16(to_float(first - low), to_float(second - high));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, upper));
    _mm512_storeu_si512(to + 32, _mm512_permutexvar_epi16(order, lower));
}

/* Write the codes of 16 rows' block, which lie as in `linear.h`, as a tile of bfloat16. */
INLINE void expand_q4(const uint8_t *codes, uint16_t *to) {
    /* Bit 4 of a place, the neighbour's, makes no difference, nor do those above. */
    static const uint16_t numbers[32] = {
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
    };
    __m512i table = _mm512_loadu_si512(numbers);
    for (int j = 0; j < 4; j++, to += 128) {
        __m512i all = _mm512_loadu_si512(codes + j * 64);
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(all, table));
        _mm512_storeu_si512(to + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(all, 4), table));
        _mm512_storeu_si512(to + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(all, 8), table));
        _mm512_storeu_si512(to + 96, _mm512_permutexvar_epi16(_mm512_srli_epi16(all, 12), table));
    }
}

/* A byte, 128 above the code, is the lowest of a float's mantissa at 2^23. */
INLINE u32x16 code_float(u32x16 byte) { return (u32x16)((f32x16)(byte | 0x4b000000) - (0x1p23f + 128)); }

INLINE void expand_q8(const uint8_t *codes, uint16_t *to) {
    for (int j = 0; j < 8; j++) {
        u32x16 all = *(const u32x16_any *)(codes + j * 64);
        uint16_t *row = to + (j % 4 * 4 + j / 4) * 32;
        *(u32x16_any *)row = code_float(all & 255) >> 16 | code_float(all >> 16 & 255);
        *(u32x16_any *)(row + 64) = code_float(all >> 8 & 255) >> 16 | code_float(all >> 24);
    }
}

#else
#define HAS_TILES 0
#define tiles_allowed 0
static void tiles_request(void) {}
static void tiles_end(void) {}
#endif
#endif
