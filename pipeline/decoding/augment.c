/* RandAugment's operations on RGB frames, with PIL's arithmetic. `augment.py` says which, where and why; it compiles this file.

   Pointwise operations that follow each other are one table of 256 bytes for each channel. Geometry is PIL's cubic (a = -1), in
   float32 and in one fixed order of operations, so that NumPy can do the same; it is compiled without contraction. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PAD 64        /* bytes between rows and after the last: vectors write beyond a row */
#define FILL 128      /* where the picture is not */
#define ALMOST 0x1p-10f /* a flat area's weights sum to a little less than one, and are truncated */

enum { TABLE, AUTOCONTRAST, EQUALIZE, CONTRAST, COLOR, SHARPNESS, AFFINE };

typedef struct {
    int64_t kind;
    int64_t left, top, right, bottom; /* which part of the result is needed */
    double matrix[6];                 /* AFFINE: where a pixel comes from, as PIL has it */
    double factor;                    /* CONTRAST, COLOR, SHARPNESS */
    uint8_t table[256];               /* TABLE */
} Stage;

typedef struct {
    const uint8_t *pixels;
    int64_t line;
} Rows;

/* 0: not here; 1: with AVX2; 2: tables also by AVX-512 */
int supported(void)
{
    if (!__builtin_cpu_supports("avx2"))
        return 0;
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi") ? 2 : 1;
}

/* ------------------------------------------------------------------------------------------------------------ tables */

/* PIL's Image.blend of two levels. */
static inline uint8_t blend(int from, int to, float factor)
{
    const float level = (float)from + factor * (float)(to - from);
    return level <= 0 ? 0 : level >= 255 ? 255 : (uint8_t)level;
}

static void count(Rows from, int64_t width, int64_t height, uint32_t counts[3][256])
{
    uint32_t pairs[2][3][256]; /* of even and odd pixels: the same bin twice in a row would wait for itself */
    memset(pairs, 0, sizeof pairs);
    for (int64_t y = 0; y < height; y++) {
        const uint8_t *row = from.pixels + y * from.line;
        for (int64_t x = 0; x < width; x++)
            for (int c = 0; c < 3; c++)
                pairs[x & 1][c][row[3 * x + c]]++;
    }
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 256; i++)
            counts[c][i] = pairs[0][c][i] + pairs[1][c][i];
}

/* Counts of what a table makes of the levels. */
static void count_through(const uint32_t counts[256], const uint8_t table[256], uint32_t of_result[256])
{
    memset(of_result, 0, 256 * sizeof(uint32_t));
    for (int i = 0; i < 256; i++)
        of_result[table[i]] += counts[i];
}

static void autocontrast(const uint32_t counts[256], uint8_t table[256])
{
    int low = 0, high = 255;
    while (low < 255 && !counts[low])
        low++;
    while (high > 0 && !counts[high])
        high--;
    const double scale = 255.0 / (high - low), offset = -low * scale;
    for (int i = 0; i < 256; i++) {
        const int level = high <= low ? i : (int)(i * scale + offset);
        table[i] = level < 0 ? 0 : level > 255 ? 255 : level;
    }
}

static void equalize(const uint32_t counts[256], uint8_t table[256])
{
    int64_t sum = 0, last = 0, levels = 0;
    for (int i = 0; i < 256; i++)
        if (counts[i]) {
            sum += counts[i];
            last = counts[i];
            levels++;
        }
    const int64_t step = (sum - last) / 255;
    int64_t passed = step / 2;
    for (int i = 0; i < 256; i++) {
        const int64_t level = levels <= 1 || !step ? i : passed / step;
        table[i] = level > 255 ? 255 : level;
        passed += counts[i];
    }
}

static inline int luma(int r, int g, int b)
{
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
}

/* The mean luma of what tables make of a frame, rounded as ImageEnhance.Contrast does. */
static int mean_luma(Rows from, int64_t width, int64_t height, const uint8_t tables[3][256])
{
    int64_t sum = 0;
    for (int64_t y = 0; y < height; y++) {
        const uint8_t *pixel = from.pixels + y * from.line;
        for (int64_t x = 0; x < width; x++, pixel += 3)
            sum += luma(tables[0][pixel[0]], tables[1][pixel[1]], tables[2][pixel[2]]);
    }
    return (int)((double)sum / (double)(width * height) + 0.5);
}

/* Tables after tables. */
static void then(uint8_t tables[3][256], int channel, const uint8_t next[256])
{
    for (int i = 0; i < 256; i++)
        tables[channel][i] = next[tables[channel][i]];
}

static void look_up(const uint8_t *from, uint8_t *to, int64_t pixels, const uint8_t tables[3][256])
{
    for (int64_t x = 0; x < pixels; x++)
        for (int c = 0; c < 3; c++)
            to[3 * x + c] = tables[c][from[3 * x + c]];
}

__attribute__((target("avx512f,avx512bw,avx512vbmi"))) static inline __m512i look_up_64(__m512i levels, const __m512i *table)
{
    const __m512i low = _mm512_permutex2var_epi8(table[0], levels, table[1]);
    const __m512i high = _mm512_permutex2var_epi8(table[2], levels, table[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(levels), low, high);
}

/* The same, 64 bytes at a time: with one table where all channels have the same. */
__attribute__((target("avx512f,avx512bw,avx512vbmi"))) static void
look_up_by_64(const uint8_t *from, uint8_t *to, int64_t pixels, const uint8_t tables[3][256])
{
    const int equal = !memcmp(tables[0], tables[1], 256) && !memcmp(tables[0], tables[2], 256);
    __m512i table[3][4];
    memcpy(table, tables, sizeof table);
    int64_t byte = 0;
    for (; byte + 64 <= 3 * pixels; byte += 64) {
        const __m512i levels = _mm512_loadu_si512(from + byte);
        __m512i found = look_up_64(levels, table[0]);
        if (!equal) {
            const uint64_t every_third = 0x9249249249249249, shift = byte % 3; /* bytes 0, 3, 6 ... */
            for (int c = 1; c < 3; c++) {
                const int first = (c + 3 - shift) % 3; /* byte of this channel */
                found = _mm512_mask_blend_epi8(every_third << first, found, look_up_64(levels, table[c]));
            }
        }
        _mm512_storeu_si512(to + byte, found);
    }
    for (; byte < 3 * pixels; byte++)
        to[byte] = tables[byte % 3][from[byte]];
}

/* Pointwise stages from the first on -> how many they are. */
static int64_t
pointwise(Rows from, int64_t width, int64_t height, const Stage *stages, int64_t num_stages, uint8_t *to, int64_t line)
{
    uint8_t tables[3][256], next[256];
    uint32_t counts[3][256], mapped[256];
    int counted = 0;
    int64_t done = 0;
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 256; i++)
            tables[c][i] = i;
    for (; done < num_stages && stages[done].kind <= CONTRAST; done++) {
        const Stage *stage = stages + done;
        if (stage->kind == CONTRAST) {
            const int mean = mean_luma(from, width, height, tables);
            for (int i = 0; i < 256; i++)
                next[i] = blend(mean, i, (float)stage->factor);
        }
        if (stage->kind == AUTOCONTRAST || stage->kind == EQUALIZE) {
            if (!counted)
                count(from, width, height, counts);
            counted = 1;
        }
        for (int c = 0; c < 3; c++) {
            if (stage->kind == AUTOCONTRAST || stage->kind == EQUALIZE) {
                count_through(counts[c], tables[c], mapped);
                (stage->kind == EQUALIZE ? equalize : autocontrast)(mapped, next);
            }
            then(tables, c, stage->kind == TABLE ? stage->table : next);
        }
    }
    const Stage *last = stages + done - 1;
    void (*apply)(const uint8_t *, uint8_t *, int64_t, const uint8_t[3][256]) = supported() == 2 ? look_up_by_64 : look_up;
    for (int64_t y = last->top; y < last->bottom; y++)
        apply(from.pixels + y * from.line + 3 * last->left, to + y * line + 3 * last->left, last->right - last->left, tables);
    return done;
}

/* ------------------------------------------------------------------------------------------------------------ blends */

__attribute__((target("avx2"))) static void
blend_row(const uint8_t *from, const uint8_t *to, float factor, int64_t size, uint8_t *out)
{
    for (int64_t i = 0; i < size; i++) {
        float level = (float)from[i] + factor * (float)(to[i] - from[i]);
        level = level < 0 ? 0 : level;
        out[i] = (uint8_t)(int)(level > 255 ? 255 : level);
    }
}

__attribute__((target("avx2"))) static void
color(Rows from, const Stage *stage, uint8_t *to, int64_t line, uint8_t *grey)
{
    const int64_t width = stage->right - stage->left;
    for (int64_t y = stage->top; y < stage->bottom; y++) {
        const uint8_t *row = from.pixels + y * from.line + 3 * stage->left;
        for (int64_t x = 0; x < width; x++)
            grey[3 * x] = grey[3 * x + 1] = grey[3 * x + 2] = luma(row[3 * x], row[3 * x + 1], row[3 * x + 2]);
        blend_row(grey, row, (float)stage->factor, 3 * width, to + y * line + 3 * stage->left);
    }
}

/* ImageFilter.SMOOTH of a row's bytes that have neighbours. */
__attribute__((target("avx2"))) static void smooth_row(const uint8_t *row, int64_t line, int64_t size, uint8_t *out)
{
    const uint8_t *above = row - line, *below = row + line;
    for (int64_t i = 0; i < size; i++) {
        const uint16_t sum = above[i - 3] + above[i] + above[i + 3] + row[i - 3] + 5 * row[i] + row[i + 3] + below[i - 3]
            + below[i] + below[i + 3] + 6;
        out[i] = (uint16_t)((uint32_t)sum * 5042 >> 16); /* sum / 13 */
    }
}

static void
sharpness(Rows from, int64_t width, int64_t height, const Stage *stage, uint8_t *to, int64_t line, uint8_t *smooth)
{
    const int64_t size = 3 * (stage->right - stage->left);
    const int64_t first = stage->left == 0 ? 3 : 0, last = stage->right == width ? size - 3 : size; /* edges stay */
    for (int64_t y = stage->top; y < stage->bottom; y++) {
        const uint8_t *row = from.pixels + y * from.line + 3 * stage->left;
        memcpy(smooth, row, size);
        if (y > 0 && y < height - 1 && last > first)
            smooth_row(row + first, from.line, last - first, smooth + first);
        blend_row(smooth, row, (float)stage->factor, size, to + y * line + 3 * stage->left);
    }
}

/* ---------------------------------------------------------------------------------------------------------- geometry */

#define NOWHERE INT32_MIN

/* Of the pixels of a row, along one axis: the first of the four that each comes from, or NOWHERE, and their weights. */
typedef struct {
    int32_t *first;
    float *weights[4];
} Places;

/* A pixel at x comes from u (x + 1/2) + v + w. Along an axis that only `shifts`, that is how far it is moved, from `start` on
   by `step`, and the shift is what is rounded. */
__attribute__((target("avx2"))) static void
find_places(
    double u, double v, double w, int shifts, int64_t start, int step, int64_t left, int64_t pixels, int64_t size, Places places)
{
    const __m256d quarters = _mm256_setr_pd(0, 1, 2, 3), zero = _mm256_setzero_pd();
    const __m128i steps = _mm_mullo_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(step));
    for (int64_t i = 0; i < pixels; i += 4) {
        const __m256d half = _mm256_add_pd(_mm256_set1_pd(left + i + 0.5), quarters);
        __m256d shift = _mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(u), half), _mm256_set1_pd(v));
        shift = _mm256_sub_pd(_mm256_add_pd(shift, _mm256_set1_pd(w)), _mm256_set1_pd(shifts ? 0 : 0.5));
        const __m256d whole = _mm256_floor_pd(shift), at = _mm256_add_pd(shift, step ? half : _mm256_set1_pd(start + 0.5));
        const __m256d there =
            _mm256_and_pd(_mm256_cmp_pd(at, zero, _CMP_GE_OQ), _mm256_cmp_pd(at, _mm256_set1_pd(size), _CMP_LT_OQ));
        const __m128i mask = _mm_castps_si128(_mm_shuffle_ps(
            _mm_castpd_ps(_mm256_castpd256_pd128(there)), _mm_castpd_ps(_mm256_extractf128_pd(there, 1)), 0x88));
        __m128i first = _mm_add_epi32(_mm256_cvttpd_epi32(whole), _mm_set1_epi32(start + step * i - 1));
        first = _mm_blendv_epi8(_mm_set1_epi32(NOWHERE), _mm_add_epi32(first, steps), mask);
        _mm_storeu_si128((__m128i *)(places.first + i), first);
        const __m128 d = _mm256_cvtpd_ps(_mm256_sub_pd(shift, whole)), square = _mm_mul_ps(d, d), cube = _mm_mul_ps(square, d);
        const __m128 twice = _mm_add_ps(square, square);
        _mm_storeu_ps(places.weights[0] + i, _mm_sub_ps(_mm_sub_ps(twice, d), cube));
        _mm_storeu_ps(places.weights[1] + i, _mm_add_ps(_mm_sub_ps(_mm_set1_ps(1), twice), cube));
        _mm_storeu_ps(places.weights[2] + i, _mm_sub_ps(_mm_add_ps(d, square), cube));
        _mm_storeu_ps(places.weights[3] + i, _mm_sub_ps(cube, square));
    }
}

static inline int64_t within(int64_t i, int64_t size)
{
    return i < 0 ? 0 : i >= size ? size - 1 : i;
}

/* A pixel at an edge, whose pixels stand for those beyond. */
static void at_edge(Rows from, int64_t width, int64_t height, const Places *across, const Places *down, int64_t i, uint8_t *out)
{
    for (int c = 0; c < 3; c++) {
        float columns[4];
        for (int k = 0; k < 4; k++) {
            const uint8_t *column = from.pixels + 3 * within(across->first[i] + k, width) + c;
            columns[k] = column[within(down->first[i], height) * from.line] * down->weights[0][i];
            for (int j = 1; j < 4; j++)
                columns[k] += column[within(down->first[i] + j, height) * from.line] * down->weights[j][i];
            columns[k] *= across->weights[k][i];
        }
        const float level = ((columns[0] + columns[2]) + (columns[1] + columns[3])) + ALMOST;
        out[c] = level <= 0 ? 0 : level >= 255 ? 255 : (uint8_t)level;
    }
}

__attribute__((target("avx2"), always_inline)) static inline __m256 two_pixels(__m128i bytes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

__attribute__((target("avx2"), always_inline)) static inline void store_level(__m128 level, uint8_t *out)
{
    level = _mm_min_ps(_mm_max_ps(_mm_add_ps(level, _mm_set1_ps(ALMOST)), _mm_setzero_ps()), _mm_set1_ps(255));
    const __m128i levels = _mm_cvttps_epi32(level);
    const int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_packus_epi32(levels, levels), levels));
    memcpy(out, &packed, 3);
}

/* A pixel whose four rows of four pixels are there, and four bytes more: R G B and nothing of each in a vector. */
__attribute__((target("avx2"), always_inline)) static inline void
inside(Rows from, const Places *across, const Places *down, int64_t i, uint8_t *out)
{
    const __m128i spread = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    const uint8_t *row = from.pixels + down->first[i] * from.line + 3 * (int64_t)across->first[i];
    __m256 first, last; /* columns 0 and 1, 2 and 3 */
    for (int j = 0; j < 4; j++, row += from.line) {
        const __m128i pixels = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)row), spread);
        const __m256 weight = _mm256_broadcast_ss(down->weights[j] + i);
        const __m256 low = _mm256_mul_ps(two_pixels(pixels), weight);
        const __m256 high = _mm256_mul_ps(two_pixels(_mm_unpackhi_epi64(pixels, pixels)), weight);
        first = j ? _mm256_add_ps(first, low) : low;
        last = j ? _mm256_add_ps(last, high) : high;
    }
    __m128 weights[4];
    for (int k = 0; k < 4; k++)
        weights[k] = _mm_broadcast_ss(across->weights[k] + i);
    first = _mm256_mul_ps(first, _mm256_set_m128(weights[1], weights[0]));
    last = _mm256_mul_ps(last, _mm256_set_m128(weights[3], weights[2]));
    const __m256 both = _mm256_add_ps(first, last);
    store_level(_mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)), out);
}

/* The same where rows stay: one pixel of each. */
__attribute__((target("avx2"), always_inline)) static inline void
in_column(Rows from, const Places *across, const Places *down, int64_t i, uint8_t *out)
{
    const uint8_t *pixel = from.pixels + down->first[i] * from.line + 3 * ((int64_t)across->first[i] + 1);
    __m128 sum = _mm_setzero_ps();
    for (int j = 0; j < 4; j++, pixel += from.line) {
        int32_t bytes;
        memcpy(&bytes, pixel, 4);
        const __m128 level = _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes)));
        const __m128 weighted = _mm_mul_ps(level, _mm_broadcast_ss(down->weights[j] + i));
        sum = j ? _mm_add_ps(sum, weighted) : weighted;
    }
    store_level(sum, out);
}

/* Bytes whose four sources lie at the same distances, with the same weights: along a row, or in four rows. */
__attribute__((target("avx2"))) static void
slid(const uint8_t *const sources[4], const float weights[4], int along, int64_t size, uint8_t *out)
{
    const uint8_t *a = sources[0], *b = sources[1], *c = sources[2], *d = sources[3];
    for (int64_t i = 0; i < size; i++) {
        const float p = a[i] * weights[0], q = b[i] * weights[1], r = c[i] * weights[2], s = d[i] * weights[3];
        float level = (along ? (p + r) + (q + s) : ((p + q) + r) + s) + ALMOST;
        level = level < 0 ? 0 : level;
        out[i] = (uint8_t)(int)(level > 255 ? 255 : level);
    }
}

__attribute__((target("avx2"))) static void
affine(Rows from, int64_t width, int64_t height, const Stage *stage, uint8_t *to, int64_t line, float *memory)
{
    const double *m = stage->matrix;
    const int along_x = m[0] == 1 && m[3] == 0 && m[4] == 1 && m[5] == 0;
    const int along_y = m[0] == 1 && m[1] == 0 && m[2] == 0 && m[4] == 1;
    const int64_t stride = width + 4;
    Places across = {(int32_t *)memory, {0}}, down = {(int32_t *)memory + stride, {0}};
    for (int k = 0; k < 4; k++) {
        across.weights[k] = memory + (2 + k) * stride;
        down.weights[k] = memory + (6 + k) * stride;
    }
    for (int64_t y = stage->top; y < stage->bottom; y++) {
        const int64_t pixels = stage->right - stage->left;
        uint8_t *out = to + y * line + 3 * stage->left;
        const int slides = m[0] == 1, falls = m[4] == 1;
        const double half = y + 0.5;
        find_places(
            slides ? 0 : m[0], m[1] * half, m[2], slides, slides ? stage->left : 0, slides, stage->left, pixels, width, across);
        find_places(m[3], falls ? 0 : m[4] * half, m[5], falls, falls ? y : 0, 0, stage->left, pixels, height, down);
        for (int64_t i = 0; i < pixels; i++, out += 3) {
            const int64_t column = across.first[i], row = down.first[i];
            if (column == NOWHERE || row == NOWHERE) {
                out[0] = out[1] = out[2] = FILL;
                continue;
            }
            if (column < 0 || column + 6 > width || row < 0 || row + 4 > height) {
                at_edge(from, width, height, &across, &down, i, out);
                continue;
            }
            if (along_x || (along_y && m[3] == 0)) { /* all the rest of the row that has four columns and rows */
                const uint8_t *sources[4], *pixel = from.pixels + row * from.line + 3 * column;
                float weights[4];
                for (int k = 0; k < 4; k++) {
                    sources[k] = pixel + (along_x ? from.line + 3 * k : 3 + k * from.line);
                    weights[k] = (along_x ? across : down).weights[k][i];
                }
                const int64_t rest = width - 3 - column < pixels - i ? width - 3 - column : pixels - i;
                slid(sources, weights, along_x, 3 * rest, out);
                i += rest - 1;
                out += 3 * (rest - 1);
            } else if (along_y)
                in_column(from, &across, &down, i, out);
            else
                inside(from, &across, &down, i, out);
        }
    }
}

/* -------------------------------------------------------------------------------------------------------------------- */

/* A frame (RGB, its rows `line_size` bytes apart) through the stages -> its rows in `scratch`, `line` bytes apart: what the
   last stage says is needed of them. `scratch` holds two frames of such rows, each with PAD bytes behind it, and 40 bytes for
   each pixel of a row and four more; which of the two has the result is returned. The frame is read only where the stages need
   it. */
int augment_frame(
    const uint8_t *frame, int64_t line_size, int64_t width, int64_t height, const Stage *stages, int64_t num_stages,
    uint8_t *scratch, int64_t line)
{
    Rows from = {frame, line_size};
    uint8_t *frames[2] = {scratch, scratch + height * line + PAD}, *row = frames[1] + height * line + PAD;
    int into = 0;
    for (int64_t done = 0; done < num_stages; into = !into) {
        const Stage *stage = stages + done;
        uint8_t *to = frames[into];
        if (stage->kind <= CONTRAST)
            done += pointwise(from, width, height, stage, num_stages - done, to, line);
        else {
            if (stage->kind == COLOR)
                color(from, stage, to, line, row);
            else if (stage->kind == SHARPNESS)
                sharpness(from, width, height, stage, to, line, row);
            else
                affine(from, width, height, stage, to, line, (float *)row);
            done++;
        }
        from = (Rows){to, line};
    }
    return !into;
}
