/* Vectors of 16 lanes in GNU C's portable notation; the compiler maps them to what the CPU has.
 *
 * Only what that notation cannot say (integer dot products, half floats) is written per instruction set, always
 * with a portable form beside it that gives the same numbers.
 */
#ifndef MYLLM_VECTORS_H
#define MYLLM_VECTORS_H

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
/* The same, for memory of any alignment. */
typedef f32x16 f32x16_any __attribute__((aligned(4), may_alias));
typedef u32x16 u32x16_any __attribute__((aligned(4), may_alias));
typedef u16x16 u16x16_any __attribute__((aligned(2), may_alias));
typedef i8x16 i8x16_any __attribute__((aligned(1), may_alias));
typedef u8x64 u8x64_any __attribute__((aligned(1), may_alias));

INLINE f32x16 splat(float value) { return value - (f32x16){0}; }
INLINE i32x16 splat_int(int32_t value) { return value + (i32x16){0}; }
INLINE f32x16 load(const float *from) { return *(const f32x16_any *)from; }
INLINE void store(float *to, f32x16 value) { *(f32x16_any *)to = value; }
INLINE f32x16 to_float(i32x16 value) { return __builtin_convertvector(value, f32x16); }
INLINE f32x16 select_float(i32x16 mask, f32x16 yes, f32x16 no) {
    return (f32x16)((mask & (i32x16)yes) | (~mask & (i32x16)no));
}
/* All bits where a is below b. By the sign of the difference: compilers take comparisons of vectors wider than the
 * CPU's apart, lane by lane. */
INLINE i32x16 below(f32x16 a, f32x16 b) { return (i32x16)(a - b) >> 31; }
INLINE i32x16 below_int(i32x16 a, int32_t b) { return (a - b) >> 31; }
INLINE f32x16 max_each(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select_float(below(a, b), b, a);
#endif
}
INLINE f32x16 abs_each(f32x16 a) { return (f32x16)((i32x16)a & splat_int(0x7fffffff)); }

INLINE float sum_lanes(f32x16 value) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)value);
#else
    float lanes[LANES], half[4];
    store(lanes, value);
    for (int i = 0; i < 4; i++) half[i] = (lanes[i] + lanes[i + 8]) + (lanes[i + 4] + lanes[i + 12]);
    return (half[0] + half[2]) + (half[1] + half[3]);
#endif
}

INLINE int32_t sum_lanes_int(i32x16 value) {
#ifdef __AVX512F__
    return _mm512_reduce_add_epi32((__m512i)value);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
#endif
}

INLINE float max_lanes(f32x16 value) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)value);
#else
    float lanes[LANES], most;
    store(lanes, value);
    most = lanes[0];
    for (int i = 1; i < LANES; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
#endif
}

/* Round to the nearest integer, ties to even; for magnitudes below 2^22. */
INLINE i32x16 round_to_int(f32x16 value) {
    return (i32x16)(value + splat(12582912.0f)) - splat_int(0x4b400000);
}

INLINE f32x16 load_bf16(const uint16_t *from) {
    return (f32x16)(__builtin_convertvector(*(const u16x16_any *)from, u32x16) << 16);
}

INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE f32x16 load_f16(const uint16_t *from) {
#ifdef __AVX512F__
    return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#else
    /* The exponent moves from bias 15 to 127 by a product, which is right for subnormals as well. */
    u32x16 bits = __builtin_convertvector(*(const u16x16_any *)from, u32x16);
    f32x16 magnitude = (f32x16)((bits & 0x7fff) << 13) * splat(0x1p112f);
    return (f32x16)((u32x16)magnitude | (bits & 0x8000) << 16);
#endif
}

INLINE float from_f16(uint16_t value) {
    uint32_t bits = (uint32_t)(value & 0x7fff) << 13;
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    return value & 0x8000 ? -magnitude * 0x1p112f : magnitude * 0x1p112f;
}

/* Round to the nearest half float, ties to even; beyond the range, to the largest. */
static uint16_t to_f16(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7bff);
    if (bits < 0x38800000) { /* subnormal: the float adder rounds */
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - 0x38000000) >> 13);
}

/* sums[lane] += the products of 4 unsigned bytes of `weights` with the 4 signed bytes of `input`, in each lane.
 * Exact: nothing saturates. */
INLINE i32x16 dot4(i32x16 sums, u8x64 weights, int32_t input) {
#if defined(__AVX512VNNI__)
    return (i32x16)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(input));
#elif defined(__AVX2__)
    __m256i signs = _mm256_set1_epi32(input), low = _mm256_set1_epi8(15);
    union { i32x16 whole; __m256i half[2]; } sum = {sums};
    union { u8x64 whole; __m256i half[2]; } weight = {weights};
    for (int i = 0; i < 2; i++) {
#if defined(__AVXVNNI__)
        sum.half[i] = _mm256_dpbusd_avx_epi32(sum.half[i], weight.half[i], signs);
#else
        /* Pairs of whole bytes would overflow the 16 bits that this instruction adds in: halves do not. */
        __m256i lower = _mm256_maddubs_epi16(_mm256_and_si256(weight.half[i], low), signs);
        __m256i upper =
            _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(weight.half[i], 4), low), signs);
        sum.half[i] = _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(lower, _mm256_set1_epi16(1)));
        sum.half[i] = _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(upper, _mm256_set1_epi16(16)));
#endif
    }
    return sum.whole;
#else
    u32x16 words = (u32x16)weights;
    for (int i = 0; i < 4; i++)
        sums += (i32x16)(words >> (8 * i) & 0xff) * (int32_t)(int8_t)((uint32_t)input >> (8 * i));
    return sums;
#endif
}

/* e to the power of each lane, to about 1e-7 relative; 0 below -87, for arguments up to 88. */
INLINE f32x16 exp_each(f32x16 value) {
    f32x16 clipped = max_each(splat(-88.0f), value), scaled = clipped * 1.44269504f;
#ifdef __AVX512F__
    f32x16 n = (f32x16)_mm512_roundscale_ps((__m512)scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    i32x16 whole = round_to_int(scaled);
    f32x16 n = to_float(whole);
#endif
    f32x16 rest = clipped - n * 0.693359375f + n * 2.12194440e-4f; /* Cody and Waite's two-part ln 2 */
    f32x16 poly = splat(1.9875691500e-4f); /* Cephes' expf */
    poly = poly * rest + 1.3981999507e-3f;
    poly = poly * rest + 8.3334519073e-3f;
    poly = poly * rest + 4.1665795894e-2f;
    poly = poly * rest + 1.6666665459e-1f;
    poly = poly * rest + 5.0000001201e-1f;
    poly = poly * rest * rest + rest + 1.0f;
#ifdef __AVX512F__
    __mmask16 counts = _mm512_cmp_ps_mask((__m512)value, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return (f32x16)_mm512_maskz_scalef_ps(counts, (__m512)poly, (__m512)n);
#else
    f32x16 result = poly * (f32x16)((whole + 127) << 23);
    return select_float(below(value, splat(-87.0f)), splat(0.0f), result);
#endif
}

#endif
