"""The C of `hal._placement`, and the number by which a build of it is known to be of this text."""

from typing import Final
from zlib import crc32

DECLARATIONS: Final = """
typedef struct {
    int64_t nodes;
    const int64_t *total, *used;            /* [nodes][6] */
    const int64_t *measured_cpu, *measured_memory;
    const int8_t *strained;                 /* near a limit of power or heat */
    const int64_t *segment_start;           /* [nodes + 1] */
    const int64_t *segment_pool, *segment_unit;  /* [segments], [segments + 1] */
    const int64_t *units;
    const int32_t *version;                 /* [nodes] */
    int64_t *base; int32_t *base_version;   /* [nodes] */
} apf_nodes;
typedef struct {
    const int64_t *class_start;             /* [pools + 1] */
    const int64_t *vectors;                 /* [classes][6] */
    const int64_t *counts, *millis, *weights;
    const int64_t *most;                    /* [pools][6]: the largest of the vectors */
    const int64_t *cpu_by_unit, *remains;   /* [pools], [pools][1001] */
} apf_tables;
typedef struct {
    int64_t want[6];
    int64_t count, milli, expected_cpu, expected_memory;
    int8_t hinted;
    const int8_t *match;                    /* [pools] */
    int64_t *keys; int32_t *version; int16_t *pool;  /* [nodes] */
} apf_request;
int64_t apf_placement_layout(void);
int64_t apf_placement_best(const apf_nodes *nodes, const apf_tables *tables,
    const apf_request *request, const int8_t *allowed, const int64_t *price);
"""

SOURCE: Final = (
    """
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DIMENSIONS 6
#define WHOLE 1000
#define STRANDED 32768
#define IDLE_CPU 19660
#define UNITS_MOST 256
#define SEEN 61
#define NEVER INT64_MAX
"""
    + DECLARATIONS.split("int64_t apf_placement_layout")[0]
    + """
static int64_t measure(const apf_tables *t, int64_t pool, const int64_t *free_,
    const int64_t *units, int64_t count)
{
    int64_t total = 0, found = 0;
    const int64_t *remains = t->remains + pool * (WHOLE + 1);
    for (int64_t i = 0; i < count; i++) {
        int64_t unit = units[i] > 0 ? units[i] : 0;
        total += unit;
        found += remains[unit];
    }
    int64_t room = free_[0] > 0 ? free_[0] : 0, cpu = t->cpu_by_unit[pool];
    if (cpu) {
        int64_t want = total * cpu / WHOLE;
        if (want > room)
            found += (want - room) * WHOLE / cpu * STRANDED;
        else
            found += (room - want) * WHOLE / cpu * IDLE_CPU;
    }
    if (!total)
        return found;
    int short_of[DIMENSIONS], shorts = 0;
    for (int d = 0; d < DIMENSIONS; d++)
        if (t->most[pool * DIMENSIONS + d] > free_[d] && t->most[pool * DIMENSIONS + d] > 0)
            short_of[shorts++] = d;
    int64_t cached = -1, fitting = 0, rest = 0;
    for (int64_t k = t->class_start[pool]; k < t->class_start[pool + 1]; k++) {
        const int64_t *want = t->vectors + k * DIMENSIONS;
        int lacks = 0;
        for (int i = 0; i < shorts; i++)
            lacks |= (want[short_of[i]] > free_[short_of[i]]) & (want[short_of[i]] > 0);
        if (lacks) {
            found += t->weights[k] * total;
            continue;
        }
        int64_t milli = t->millis[k];
        if (milli != cached) {
            cached = milli;
            fitting = rest = 0;
            for (int64_t i = 0; i < count; i++) {
                int64_t unit = units[i] > 0 ? units[i] : 0, large = unit >= milli;
                fitting += large;
                rest += large ? 0 : unit;
            }
        }
        found += t->weights[k] * (fitting >= t->counts[k] ? rest : total);
    }
    return found;
}

static int64_t filled(int64_t used, int64_t want, int64_t total)
{
    int64_t sum = used + want;
    if (sum < INT64_MAX / 1000000)
        return sum * 1000000 / total;
    return (int64_t)((__int128)sum * 1000000 / total);
}

static int64_t key_of(const apf_nodes *s, const apf_tables *t, const apf_request *r, int64_t n,
    int16_t *chosen)
{
    const int64_t *total = s->total + n * DIMENSIONS, *used = s->used + n * DIMENSIONS;
    int64_t left[DIMENSIONS], after[DIMENSIONS];
    *chosen = 0;
    for (int d = 0; d < DIMENSIONS; d++) {
        left[d] = total[d] - used[d];
        after[d] = left[d] - r->want[d];
        if (r->want[d] > 0 && after[d] < 0)
            return NEVER;
    }
    int64_t first = s->segment_start[n], last = s->segment_start[n + 1];
    int64_t start = s->segment_unit[first];
    int64_t count = s->segment_unit[last] - start;
    int64_t units[UNITS_MOST];
    memcpy(units, s->units + start, (size_t)count * sizeof *units);
    int hot = 0, waste = 0;
    if (r->count) {
        int8_t taken[UNITS_MOST];
        memset(taken, 0, (size_t)count);
        int seen = 0;
        for (int64_t g = first; g < last; g++)
            if (r->match[s->segment_pool[g]] && !seen) {
                *chosen = (int16_t)s->segment_pool[g];
                seen = 1;
            }
        for (int64_t c = 0; c < r->count; c++) {
            int64_t best = -1;
            for (int64_t g = first; g < last; g++) {
                if (!r->match[s->segment_pool[g]])
                    continue;
                int64_t end = s->segment_unit[g + 1] - start;
                for (int64_t i = s->segment_unit[g] - start; i < end; i++)
                    if (!taken[i] && s->units[start + i] >= r->milli
                        && (best < 0 || s->units[start + i] < s->units[start + best]))
                        best = i;
            }
            if (best < 0)
                return NEVER;
            taken[best] = 1;
            units[best] -= r->milli;
        }
    } else {
        for (int64_t i = 0; i < count; i++)
            waste |= units[i] == WHOLE;
    }
    if (s->strained[n])
        hot = 1;
    else if (r->hinted || s->measured_cpu[n] || s->measured_memory[n])
        hot = (s->measured_cpu[n] + r->expected_cpu) * 1000 > total[0] * 700
            || (s->measured_memory[n] + r->expected_memory) * 1000 > total[1] * 900;
    int64_t cost = 0, fill = 0;
    if (first != last) {
        if (s->base_version[n] != s->version[n]) {
            int64_t base = 0;
            for (int64_t g = first; g < last; g++)
                base += measure(t, s->segment_pool[g], left, s->units + s->segment_unit[g],
                    s->segment_unit[g + 1] - s->segment_unit[g]);
            s->base[n] = base;
            s->base_version[n] = s->version[n];
        }
        int64_t then = 0;
        for (int64_t g = first; g < last; g++)
            then += measure(t, s->segment_pool[g], after, units + (s->segment_unit[g] - start),
                s->segment_unit[g + 1] - s->segment_unit[g]);
        cost = (then - s->base[n]) >> 20;
    } else {
        int64_t sum = 0, high = 0, low = 0, parts = 0;
        for (int d = 0; d < DIMENSIONS; d++) {
            if (!total[d] || (d > 1 && !r->want[d]))
                continue;
            int64_t part = filled(used[d], r->want[d], total[d]);
            sum += part;
            if (!parts || part > high)
                high = part;
            if (!parts || part < low)
                low = part;
            parts++;
        }
        if (parts)
            fill = sum / parts - (high - low) / 4;
        if (fill < 0)
            fill = 0;
        if (fill > (1 << 21) - 1)
            fill = (1 << 21) - 1;
    }
    int64_t score = ((cost + ((int64_t)1 << 31)) << 22) + ((1 << 21) - 1 - fill);
    return ((int64_t)hot << 61) + ((int64_t)waste << 60) + score;
}

/* Whether nothing that a key depends on tells two nodes apart. */
static int alike(const apf_nodes *s, int64_t a, int64_t b)
{
    int64_t first = s->segment_start[a], other = s->segment_start[b];
    int64_t segments = s->segment_start[a + 1] - first;
    if (segments != s->segment_start[b + 1] - other)
        return 0;
    for (int64_t g = 0; g < segments; g++)
        if (s->segment_pool[first + g] != s->segment_pool[other + g]
            || s->segment_unit[first + g + 1] - s->segment_unit[first + g]
                != s->segment_unit[other + g + 1] - s->segment_unit[other + g])
            return 0;
    int64_t units = s->segment_unit[first + segments] - s->segment_unit[first];
    size_t row = DIMENSIONS * sizeof *s->used;
    return s->measured_cpu[a] == s->measured_cpu[b]
        && s->measured_memory[a] == s->measured_memory[b] && s->strained[a] == s->strained[b]
        && !memcmp(s->used + a * DIMENSIONS, s->used + b * DIMENSIONS, row)
        && !memcmp(s->total + a * DIMENSIONS, s->total + b * DIMENSIONS, row)
        && !memcmp(s->units + s->segment_unit[first], s->units + s->segment_unit[other],
            (size_t)units * sizeof *s->units);
}

/* The first of the nodes with the least key that are allowed; -1 where none fits. */
static int64_t apf_placement_best(const apf_nodes *s, const apf_tables *t, const apf_request *r,
    const int8_t *allowed, const int64_t *price)
{
    int64_t best = -1, least = NEVER;
    int64_t seen[SEEN];
    memset(seen, 0xFF, sizeof seen);
    for (int64_t n = 0; n < s->nodes; n++) {
        if (r->version[n] != s->version[n]) {
            uint64_t hash = (uint64_t)s->total[n * DIMENSIONS] * 0x9E3779B97F4A7C15u
                + (uint64_t)s->used[n * DIMENSIONS] * 0xC2B2AE3D27D4EB4Fu
                + (uint64_t)s->used[n * DIMENSIONS + 1]
                + (uint64_t)s->segment_pool[s->segment_start[n]] * 0x165667B19E3779F9u;
            int64_t *slot = &seen[(hash ^ hash >> 29) % SEEN];
            if (*slot >= 0 && alike(s, *slot, n)) {
                r->keys[n] = r->keys[*slot];
                r->pool[n] = r->pool[*slot];
            } else {
                r->keys[n] = key_of(s, t, r, n, &r->pool[n]);
                *slot = n;
            }
            r->version[n] = s->version[n];
        }
        int64_t key = r->keys[n];
        if (key == NEVER || !allowed[n])
            continue;
        if (price)
            key += price[r->pool[n]] << 22;
        if (key < least) {
            least = key;
            best = n;
        }
    }
    return best;
}
"""
)

LAYOUT: Final = crc32((DECLARATIONS + SOURCE).encode())
