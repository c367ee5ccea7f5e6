/* Levels of views -> floats, (x / white - mean) / std, in one reading and one writing past the cache. `floats.py` compiles this. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

int supported(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

/* Rows of `width` RGB pixels, of 8 bits or `wide`, 16; `mean` and `std` have a number for each byte or number of a row. Mirrored
   rows are turned round first. Returns 0, or -1 if there is no memory. */
__attribute__((target("avx2"))) int
floats(const void *pixels, int64_t wide, int64_t rows, int64_t width, int64_t mirrored, float white, const float *mean,
       const float *std, float *out)
{
    const int64_t size = 3 * width;
    uint8_t *turned = malloc(2 * size);
    if (!turned)
        return -1;
    const __m256 whites = _mm256_set1_ps(white);
    for (int64_t y = 0; y < rows; y++, out += size) {
        const uint8_t *bytes = (const uint8_t *)pixels + y * size * (wide ? 2 : 1);
        if (mirrored) {
            if (wide)
                for (int64_t x = 0; x < width; x++)
                    for (int c = 0; c < 3; c++)
                        ((int16_t *)turned)[3 * x + c] = ((const int16_t *)bytes)[3 * (width - 1 - x) + c];
            else
                for (int64_t x = 0; x < width; x++)
                    for (int c = 0; c < 3; c++)
                        turned[3 * x + c] = bytes[3 * (width - 1 - x) + c];
            bytes = turned;
        }
        const int aligned = (uintptr_t)out % 32 == 0;
        int64_t i = 0;
        for (; i + 8 <= size; i += 8) {
            const __m256i levels = wide ? _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(bytes + 2 * i)))
                                        : _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + i)));
            __m256 x = _mm256_div_ps(_mm256_cvtepi32_ps(levels), whites);
            x = _mm256_div_ps(_mm256_sub_ps(x, _mm256_loadu_ps(mean + i)), _mm256_loadu_ps(std + i));
            if (aligned)
                _mm256_stream_ps(out + i, x);
            else
                _mm256_storeu_ps(out + i, x);
        }
        for (; i < size; i++)
            out[i] = ((float)(wide ? ((const int16_t *)bytes)[i] : bytes[i]) / white - mean[i]) / std[i];
    }
    _mm_sfence();
    free(turned);
    return 0;
}
