/* Crops of an RGB frame, resized with bilinear weights. To 8 bits, antialiased: the arithmetic of torch's uint8 kernel, bit for
   bit. To 16 bits, in 128ths of a level: two taps a pass, for official fine-tuning.

   First along x, then along y, each pass in 16-bit fixed point and rounded to 8 or 16 bits. Both passes go row by row, so that
   what lies between them stays in the first cache. (Columns gain 7 % by vectors of 64 bytes; that is not here.) `resize.py`
   computes the weights, compiles this file and says why it exists. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PAD 64     /* bytes that a vector may touch beyond a row, besides taps of weight 0 */
#define FRACTION 7 /* bits of 16 below a level */

/* One direction. Taps come in pairs, as pmaddwd wants them; a tap that is not needed has the weight 0. */
typedef struct {
    int64_t out, pairs, precision;
    int64_t group; /* along x: 16 neighbouring pixels whose taps lie within 64 bytes, 4 or 2 within 16 bytes, else 1 */
    const int32_t *first; /* (out rounded up to 8 or 16,): first tap of an output pixel */
    /* along y: (out, pairs, 2); along x: (out / 8, pairs, 4, 2, 4, 2), see `along_x`, or (out / 16, pairs, 3, 16, 2) */
    const int16_t *weights;
    /* where group > 1, which bytes of a group a pixel takes: (out / 8, pairs, 4, 2, 16) or (out / 16, pairs, 3, 64) */
    const uint8_t *bytes;
} Axis;

typedef struct {
    int64_t x, y, width, height; /* of the crop */
    const Axis *horizontal, *vertical; /* NULL where the side stays as it is */
    uint8_t *out; /* rows without gaps */
} View;

/* 0: not here; 1: with AVX2; 2: rows also 16 pixels at a time */
int supported(void)
{
    if (!__builtin_cpu_supports("avx2"))
        return 0;
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")
        ? 2 : 1;
}

/* Two halves of a vector, 16 bytes from either place. */
__attribute__((target("avx2"))) static inline __m256i load(const uint8_t *low, const uint8_t *high)
{
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)low)), _mm_loadu_si128((const __m128i *)high), 1);
}

/* A row of RGB pixels -> axis->out pixels. Eight at a time: register q holds pixels q and q + 4, so that packing restores
   their order. Reads up to 6 pairs + PAD bytes beyond the row and writes up to PAD beyond the result. */
__attribute__((target("avx2"), always_inline)) static inline void
along_x(const uint8_t *row, const Axis *axis, uint8_t *out, const int group, const int wide)
{
    const __m256i two_pixels = _mm256_broadcastsi128_si256( /* r r g g b b, 16 bits each */
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i squeeze =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i squeeze_wide =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, -1, -1, -1, -1));
    const int64_t precision = axis->precision - (wide ? FRACTION : 0);
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi64_si128(precision);
    const __m256i *weights = (const __m256i *)axis->weights, *bytes = (const __m256i *)axis->bytes;
    const int32_t *first = axis->first;
    for (int64_t x = 0; x < axis->out; x += 8, first += 8, out += wide ? 48 : 24) {
        __m256i sum[4] = {half, half, half, half}, pixels[4];
        if (group > 1)
            for (int q = 0; q < 4; q++)
                pixels[q] = q % group ? pixels[q - 1] : load(row + 3 * first[q], row + 3 * first[q + 4]);
        for (int64_t pair = 0; pair < axis->pairs; pair++, weights += 4)
            for (int q = 0; q < 4; q++) {
                const __m256i taps = group > 1
                    ? _mm256_shuffle_epi8(pixels[q], _mm256_loadu_si256(bytes++))
                    : _mm256_shuffle_epi8(load(row + 3 * first[q] + 6 * pair, row + 3 * first[q + 4] + 6 * pair), two_pixels);
                sum[q] = _mm256_add_epi32(sum[q], _mm256_madd_epi16(taps, _mm256_loadu_si256(weights + q)));
            }
        for (int q = 0; q < 4; q++)
            sum[q] = _mm256_sra_epi32(sum[q], shift);
        if (wide) {
            const __m256i early = _mm256_shuffle_epi8(_mm256_packus_epi32(sum[0], sum[1]), squeeze_wide);
            const __m256i late = _mm256_shuffle_epi8(_mm256_packus_epi32(sum[2], sum[3]), squeeze_wide);
            _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(early)); /* pixels 0 and 1, then 2 and 3 ... */
            _mm_storeu_si128((__m128i *)(out + 12), _mm256_castsi256_si128(late));
            _mm_storeu_si128((__m128i *)(out + 24), _mm256_extracti128_si256(early, 1));
            _mm_storeu_si128((__m128i *)(out + 36), _mm256_extracti128_si256(late, 1));
            continue;
        }
        __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(sum[0], sum[1]), _mm256_packus_epi32(sum[2], sum[3]));
        packed = _mm256_shuffle_epi8(packed, squeeze);
        _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(packed));
        _mm_storeu_si128((__m128i *)(out + 12), _mm256_extracti128_si256(packed, 1));
    }
}

/* The same, 16 at a time: each vector makes 16 bytes of the result, in their order. */
__attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vnni"))) static void
along_x_by_16(const uint8_t *row, const Axis *axis, uint8_t *out, int wide)
{
    const int64_t precision = axis->precision - (wide ? FRACTION : 0);
    const __m512i half = _mm512_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi64_si128(precision);
    const __m512i *weights = (const __m512i *)axis->weights, *bytes = (const __m512i *)axis->bytes;
    for (int64_t x = 0; x < axis->out; x += 16, out += wide ? 96 : 48) {
        const __m512i pixels = _mm512_loadu_si512(row + 3 * axis->first[x]);
        __m512i sum[3] = {half, half, half};
        for (int64_t pair = 0; pair < axis->pairs; pair++)
            for (int k = 0; k < 3; k++) { /* 16 bits each: the upper halves are 0 */
                const __m512i taps =
                    _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_loadu_si512(bytes++), pixels);
                sum[k] = _mm512_dpwssd_epi32(sum[k], taps, _mm512_loadu_si512(weights++));
            }
        for (int k = 0; k < 3; k++) {
            sum[k] = _mm512_sra_epi32(sum[k], shift);
            if (wide)
                _mm256_storeu_si256((__m256i *)(out + 32 * k), _mm512_cvtusepi32_epi16(sum[k]));
            else
                _mm_storeu_si128((__m128i *)(out + 16 * k), _mm512_cvtusepi32_epi8(sum[k]));
        }
    }
}

#define ROWS(group) (wide ? along_x(row, axis, out, group, 1) : along_x(row, axis, out, group, 0))

__attribute__((target("avx2"))) static void resize_row(const uint8_t *row, const Axis *axis, uint8_t *out, int wide)
{
    if (axis->group == 16)
        along_x_by_16(row, axis, out, wide);
    else if (axis->group == 4)
        ROWS(4);
    else if (axis->group == 2)
        ROWS(2);
    else
        ROWS(1);
}

/* Rows of `size` bytes -> one. `rows` has two for each pair of weights. */
__attribute__((target("avx2"))) static void
along_y(const uint8_t *const *rows, const int16_t *weights, int64_t pairs, int64_t precision, int64_t size, uint8_t *out)
{
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi64_si128(precision);
    const int aligned = (uintptr_t)out % 32 == 0;
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) {
        __m256i sum[4] = {half, half, half, half};
        for (int64_t pair = 0; pair < pairs; pair++) {
            int32_t both;
            memcpy(&both, weights + 2 * pair, 4);
            const __m256i weight = _mm256_set1_epi32(both);
            const __m256i a = _mm256_loadu_si256((const __m256i *)(rows[2 * pair] + i));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(rows[2 * pair + 1] + i));
            const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
            sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), weight));
            sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), weight));
            sum[2] = _mm256_add_epi32(sum[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), weight));
            sum[3] = _mm256_add_epi32(sum[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), weight));
        }
        for (int q = 0; q < 4; q++)
            sum[q] = _mm256_sra_epi32(sum[q], shift);
        const __m256i low = _mm256_packus_epi32(sum[0], sum[1]), high = _mm256_packus_epi32(sum[2], sum[3]);
        if (aligned)
            _mm256_stream_si256((__m256i *)(out + i), _mm256_packus_epi16(low, high));
        else
            _mm256_storeu_si256((__m256i *)(out + i), _mm256_packus_epi16(low, high));
    }
    for (; i < size; i++) {
        int32_t sum = 1 << (precision - 1);
        for (int64_t tap = 0; tap < 2 * pairs; tap++)
            sum += rows[tap][i] * weights[tap];
        sum >>= precision;
        out[i] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
    }
}

/* Two rows of `size` numbers of 16 bits -> one. */
__attribute__((target("avx2"))) static void
along_y_wide(const int16_t *above, const int16_t *below, const int16_t *weights, int64_t precision, int64_t size, int16_t *out)
{
    const __m128i shift = _mm_cvtsi64_si128(precision);
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    int32_t both;
    memcpy(&both, weights, 4);
    const __m256i weight = _mm256_set1_epi32(both);
    const int aligned = (uintptr_t)out % 32 == 0;
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(above + i));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(below + i));
        const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), weight), half);
        const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), weight), half);
        const __m256i made = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
        if (aligned)
            _mm256_stream_si256((__m256i *)(out + i), made);
        else
            _mm256_storeu_si256((__m256i *)(out + i), made);
    }
    for (; i < size; i++)
        out[i] = (above[i] * weights[0] + below[i] * weights[1] + (1 << (precision - 1))) >> precision;
}

/* Returns 0, or -1 if there is no memory. `frame` is RGB, its rows `line_size` bytes apart. Views are `wide` if they have 16
   bits: then both axes are there, of two taps. */
int resize_views(const uint8_t *frame, int64_t line_size, const View *views, int64_t num_views, int64_t wide)
{
    for (const View *view = views; view < views + num_views; view++) {
        const Axis *horizontal = view->horizontal, *vertical = view->vertical;
        const int64_t width = horizontal ? horizontal->out : view->width, size = (wide ? 6 : 3) * width;
        const int64_t taps = vertical ? 2 * vertical->pairs : 1, stride = size + (wide ? 2 : 1) * PAD;
        const uint8_t *crop = frame + view->y * line_size + 3 * view->x;
        /* pointers to rows, `taps` rows that went through the first pass, a row to be read */
        const int64_t longest = 3 * view->width + (horizontal ? 6 * horizontal->pairs : 0) + PAD;
        uint8_t *memory = malloc(taps * sizeof(uint8_t *) + taps * stride + longest);
        if (!memory)
            return -1;
        const uint8_t **rows = (const uint8_t **)memory;
        uint8_t *ring = memory + taps * sizeof(uint8_t *), *row = ring + taps * stride;
        int64_t done = 0; /* rows of the crop that are in the ring, or were */
        for (int64_t y = 0; y < (vertical ? vertical->out : view->height); y++) {
            const int64_t first = vertical ? vertical->first[y] : y;
            const int64_t last = first + taps < view->height ? first + taps : view->height;
            if (done < first)
                done = first; /* rows between the taps of wide views */
            for (; horizontal && done < last; done++) {
                memcpy(row, crop + done * line_size, 3 * view->width);
                resize_row(row, horizontal, ring + done % taps * stride, wide);
            }
            for (int64_t tap = 0; tap < taps; tap++) { /* beyond the crop the weights are 0 */
                const int64_t from = first + tap < last ? first + tap : first;
                rows[tap] = horizontal ? ring + from % taps * stride : crop + from * line_size;
            }
            uint8_t *out = view->out + y * size;
            if (wide)
                along_y_wide(
                    (const int16_t *)rows[0], (const int16_t *)rows[1], vertical->weights + y * taps, vertical->precision,
                    size / 2, (int16_t *)out);
            else if (vertical)
                along_y(rows, vertical->weights + y * taps, vertical->pairs, vertical->precision, size, out);
            else
                memcpy(out, rows[0], size);
        }
        free(memory);
    }
    _mm_sfence(); /* what went past the cache is there for whoever hears of it */
    return 0;
}
