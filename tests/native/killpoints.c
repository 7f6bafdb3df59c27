/* killpoints.c: kills a process at every named point of every operation, then lets others go on.
 *
 *   killpoints [-s SEED] [-v] [-f]
 *
 * For each case (killcases.c) and each point that it passes, at its first hit and at later ones: a child is killed
 * there, and the parent acts as next writer of the same key, as reader, or as keeper.  Double crash: a second child is
 * killed at each point of the recovery from the first death (without -f after a third of those).  Then, each time:
 *   - whoever acts is done within a second;
 *   - what the operation wrote is visible as a whole if its record is in the ring, and not at all if it isn't;
 *   - all slots of the dead can be reaped, the audit finds nothing, nothing has leaked;
 *   - the log, replayed into a fresh arena, makes the same table.
 * A point that no case passes is a failure: the matrix proves what it covers.
 *
 * Invariants:
 *   I1  A case starts from the same bytes each time: an image of the arena is put back, hash key and LSNs included.
 */
#include "fault.h"
#include "fault_test.h"
#include "heap.h"
#include "killcases.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KEPT_SLOTS 24u            /* slots that an image keeps */
#define KEYS_MOST 256u
#define ACTION_LIMIT_NS 1000000000ULL

typedef enum Actor { WRITER, READER, KEEPER, ACTORS } Actor;
static const char *const actor_names[] = {"next writer", "reader", "keeper"};

typedef struct Image {
    uint8_t *bytes;
    uint64_t tail;
} Image;

/* What can be seen: a checksum of each key's status, type, expiry and value; the bytes of the case's own key. */
typedef struct Content {
    uint32_t keys[KEYS_MOST];
    uint32_t clears;              /* of namespace 1 */
    bool present;
    uint8_t type;
    uint64_t length;
    uint8_t data[128 * 1024];
} Content;

typedef struct Matrix {
    const KillCase *kase;
    World world;
    Log log;                      /* up to the start of the operation: log_length bytes */
    uint64_t log_length;
    Random random;
    long *hits;                   /* shared: what the child counted */
    Content before, after, now;
    bool covered[FAULT_COUNT];
    uint64_t runs, double_runs, committed, longest_ns;
    bool verbose, full;           /* full: double crashes after every first death, else after a third */
} Matrix;

/* ---- images ---------------------------------------------------------------------------------- */
static void image_copy(World *world, uint8_t *bytes, bool save) {
    const Arena *arena = &world->arena;
    uint64_t slots = (uint64_t)((uint8_t *)arena->slots - world->base),
             stripes = (uint64_t)((uint8_t *)arena->stripes - world->base);
    uint64_t parts[2][2] = {{0, slots + KEPT_SLOTS * sizeof(Slot)}, {stripes, world->bytes - stripes}};
    for (int i = 0; i < 2; i++) {
        uint8_t *there = world->base + parts[i][0], *here = bytes + parts[i][0];
        memcpy(save ? here : there, save ? there : here, parts[i][1]);
    }
}

static void image_save(Matrix *matrix, Image *image) {
    if (image->bytes == NULL) {
        image->bytes = malloc(matrix->world.bytes);
        CHECK(image->bytes != NULL);
    }
    image_copy(&matrix->world, image->bytes, true);
    image->tail = matrix->world.arena.control->ring_tail;
}

static void image_restore(Matrix *matrix, const Image *image) { image_copy(&matrix->world, image->bytes, false); }

/* ---- what can be seen ------------------------------------------------------------------------ */
static uint32_t value_sum(Call *call, const Key *key, Value *value) {
    Status s = do_get(call, key, value);
    CHECK_SAYING(s == ST_OK || s == ST_NOT_FOUND, "get of %.*s: status %d", (int)key->length, key->data, s);
    if (s == ST_NOT_FOUND) {
        return 0;
    }
    uint32_t sum = crc32c(crc32c(1, &value->type, 1), &value->expires_ms, 8);
    return crc32c(sum, value->data, value->length);
}

static void content_take(Matrix *matrix, Content *content) {
    static Value value;           /* its buffer is used again and again */
    Call *call = &matrix->world.call;
    char text[16];
    const char *name;
    for (uint32_t i = 0; (name = kill_key(i, text)) != NULL; i++) {
        CHECK(i < KEYS_MOST);
        Key key = key_of(call->arena, name);
        content->keys[i] = value_sum(call, &key, &value);
        if (strcmp(name, matrix->kase->key) == 0) {
            content->present = content->keys[i] != 0;
            content->type = value.type;
            content->length = content->present ? value.length : 0;
            CHECK(content->length <= sizeof content->data);
            memcpy(content->data, value.data, content->length);
        }
    }
    content->clears = 0;
    for (uint32_t i = 0; i < CASE_KEYS; i += 4) {
        snprintf(text, sizeof text, "k%u", i);
        Key key = key_in(call->arena, text, 1);
        content->clears = crc32c(content->clears, &(uint32_t){value_sum(call, &key, &value)}, 4);
    }
}

/* Which of the two it is: bit 1 = as before, bit 2 = as after; per key if `each`. */
static void content_check(const Matrix *matrix, bool moved, bool skip_own) {
    char text[16];
    const char *name;
    for (uint32_t i = 0; (name = kill_key(i, text)) != NULL; i++) {
        if (skip_own && strcmp(name, matrix->kase->key) == 0) {
            continue;
        }
        uint32_t now = matrix->now.keys[i], before = matrix->before.keys[i], after = matrix->after.keys[i];
        if (matrix->kase->records == MANY_RECORDS) {
            CHECK_SAYING(now == before || now == after, "key %s is neither old nor new", name);
        } else {
            CHECK_SAYING(now == (moved ? after : before), "key %s is not %s, though the tail has%s moved", name,
                         moved ? "new" : "old", moved ? "" : " not");
        }
    }
    CHECK_EQUAL(matrix->now.clears, matrix->before.clears);
}

/* ---- acting ---------------------------------------------------------------------------------- */
/* Writes to the case's key something that shows what was there. */
static void write_on(Call *call, const KillCase *kase) {
    Key key = key_of(call->arena, kase->key);
    Status s;
    if (strcmp(kase->key, "number") == 0) {
        int64_t number;
        s = do_incr(call, &key, 1000, &number);
        CHECK(s != ST_OK || number == 1040 || number == 1042);
    } else {
        uint64_t length;
        s = do_append(call, &key, "+", 1, &length);
    }
    CHECK_SAYING(s == ST_OK || s == ST_WRONG_TYPE || s == ST_FULL || (s == ST_RETIRED && kase->retires),
                 "next write: status %d", s);
}

static void check_written_on(const Matrix *matrix, bool moved) {
    const Content *base[2] = {&matrix->before, &matrix->after}, *now = &matrix->now;
    bool fits = false;
    for (int i = 0; i < 2; i++) {
        if (matrix->kase->records != MANY_RECORDS && i != moved) {
            continue;
        }
        if (base[i]->present && base[i]->type != TYPE_BYTES) {
            fits = fits || strcmp(matrix->kase->key, "number") == 0 || now->length == base[i]->length;
            continue;
        }
        bool grown = now->length == base[i]->length + 1 && now->data[now->length - 1] == '+';
        /* A store that is bounded may refuse the append: then nothing has changed. */
        bool same = matrix->kase->setup != NULL && now->length == base[i]->length;
        fits = fits || ((grown || same) && memcmp(now->data, base[i]->data, base[i]->length) == 0);
    }
    CHECK_SAYING(fits, "the next write found neither the old nor the new value");
}

static void act(Call *call, const KillCase *kase, Actor actor) {
    if (kase->retires) {
        return;
    }
    if (actor == WRITER) {
        write_on(call, kase);
    } else if (actor == READER) {
        static Value value;
        Key key = key_of(call->arena, kase->key);
        (void)value_sum(call, &key, &value);
    } else {
        (void)reap_all(call);
        sweep_all(call);
    }
}

static void check_retired(Matrix *matrix) {
    World *world = &matrix->world;
    Call *call = &world->call;
    CHECK_EQUAL(do_retire(call), ST_OK);
    uint64_t tail = world->arena.control->ring_tail;
    uint8_t data[64];
    Value value = {.data = data, .capacity = sizeof data};
    Key key = key_of(&world->arena, "k9");
    CHECK_EQUAL(do_put(call, "k9", "x", 1), ST_RETIRED);
    CHECK_EQUAL(store_get(call, &key, &value), ST_RETIRED);
    for (uint32_t i = 0; i < world->arena.stripe_count; i++) {
        CHECK_EQUAL(world->arena.stripes[i].sequence & 1, 1);
        CHECK_EQUAL(world->arena.stripes[i].owner, 0);
    }
    CHECK_EQUAL(world->arena.control->ring_tail, tail);
    CHECK_EQUAL(world->arena.control->state, STATE_RETIRED);
    /* For the checks that follow only: what was in the table and in the log when it ended. */
    world->arena.control->retired = 0;
    world->arena.control->state = STATE_READY;
    for (uint32_t i = 0; i < world->arena.stripe_count; i++) {
        world->arena.stripes[i].sequence++;
    }
}

/* Everything that must hold after a death; dead = how many slots there are to reap at most. */
static void check_all(Matrix *matrix, const Image *start, Actor actor, uint32_t dead, bool moved_before) {
    World *world = &matrix->world;
    uint64_t begun = clock_monotonic_ns();
    bool moved = world->arena.control->ring_tail != start->tail || moved_before;
    act(&world->call, matrix->kase, actor);
    uint64_t took = clock_monotonic_ns() - begun;
    CHECK_SAYING(took < ACTION_LIMIT_NS, "the %s took %llu ms", actor_names[actor], (unsigned long long)took / 1000000);
    matrix->longest_ns = took > matrix->longest_ns ? took : matrix->longest_ns;
    if (matrix->kase->retires) {
        check_retired(matrix);
    }
    uint32_t reaped = reap_all(&world->call);
    CHECK(reaped <= dead);
    content_take(matrix, &matrix->now);
    content_check(matrix, moved, actor == WRITER);
    if (actor == WRITER && !matrix->kase->retires) {
        check_written_on(matrix, moved);
    }
    sweep_all(&world->call);
    for (int32_t i = 0; i < (int32_t)SLOT_COUNT; i++) {
        CHECK(world->arena.slots[i].owner == 0 || i == world->call.slot);
        CHECK_EQUAL(world->arena.slots[i].verdict, 0);
    }
    matrix->log.length = matrix->log_length;
    world_verify(world, &matrix->log);
    matrix->committed += moved;
}

/* ---- the children ---------------------------------------------------------------------------- */
typedef struct Errand {
    Matrix *matrix;
    int point;
    long hit;
    int actor;                    /* -1 = the case's own operation */
} Errand;

static void run_errand(Call *call, void *context) {
    Errand *errand = context;
    fault_arm(errand->point, errand->hit);
    if (errand->actor < 0) {
        errand->matrix->kase->run(call);
    } else {
        act(call, errand->matrix->kase, (Actor)errand->actor);
    }
    for (int i = 0; i < FAULT_COUNT; i++) {
        errand->matrix->hits[i] = fault_hits(i);
    }
    fault_arm(-1, 0);
    call_close(call);
}

static int run_child(Matrix *matrix, int point, long hit, int actor) {
    Errand errand = {matrix, point, hit, actor};
    return child_end(child_start(&matrix->world, run_errand, &errand));
}

/* ---- one death ------------------------------------------------------------------------------- */
/* Between these points a stripe counts as changing: its sequence is odd in the memory that the dead left behind. */
static bool must_be_odd(int point) {
    return (point >= FAULT_tail_stored && point <= FAULT_counted) ||
           (point >= FAULT_repair_odd && point <= FAULT_rebuild_done) ||
           (point >= FAULT_move_odd && point <= FAULT_move_placed) || point == FAULT_sweep_odd ||
           point == FAULT_sweep_unlinked;
}

static void check_odd(const Matrix *matrix, int point) {
    const Arena *arena = &matrix->world.arena;
    bool odd = matrix->kase->records == NO_RECORD && point <= FAULT_counted;      /* a mark has no stripes */
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        odd = odd || (arena->stripes[i].owner != 0 && (arena->stripes[i].sequence & 1) != 0);
    }
    CHECK_SAYING(odd || !must_be_odd(point), "killed at %s, and no dirty stripe has an odd sequence",
                 fault_name(point));
}

static void one_death(Matrix *matrix, const Image *start, int point, long hit, Actor actor) {
    check_case("%s, killed at %s (hit %ld), then the %s", matrix->kase->name, fault_name(point), hit,
               actor_names[actor]);
    image_restore(matrix, start);
    CHECK_EQUAL(run_child(matrix, point, hit, -1), SIGKILL);
    check_odd(matrix, point);
    check_all(matrix, start, actor, matrix->kase->dead_slots + 1, false);
    matrix->runs++;
}

static void single_crashes(Matrix *matrix, const Image *start, const long *hits) {
    for (int point = 0; point < FAULT_COUNT; point++) {
        if (hits[point] == 0) {
            continue;
        }
        matrix->covered[point] = true;
        for (int actor = 0; actor < ACTORS; actor++) {
            one_death(matrix, start, point, 1, (Actor)actor);
        }
        if (hits[point] > 1) {
            one_death(matrix, start, point, hits[point], (Actor)random_below(&matrix->random, ACTORS));
        }
        for (int more = 0; more < 2 && hits[point] > 2; more++) {
            one_death(matrix, start, point, (long)random_between(&matrix->random, 2, (uint64_t)hits[point] - 1),
                      (Actor)random_below(&matrix->random, ACTORS));
        }
    }
}

/* ---- two deaths ------------------------------------------------------------------------------ */
static bool recovery_point(int point) {
    return (point >= FAULT_settle_found && point <= FAULT_repair_consistent) ||
           (point >= FAULT_reap_repaired && point <= FAULT_reap_freed);
}

static void second_deaths(Matrix *matrix, const Image *start, const Image *first, int first_point, Actor second) {
    long hits[FAULT_COUNT];
    image_restore(matrix, first);
    check_case("%s, killed at %s, then the %s", matrix->kase->name, fault_name(first_point), actor_names[second]);
    CHECK_EQUAL(run_child(matrix, -1, 0, (int)second), 0);
    memcpy(hits, matrix->hits, sizeof hits);
    for (int point = 0; point < FAULT_COUNT; point++) {
        if (hits[point] == 0 || !recovery_point(point)) {
            continue;
        }
        matrix->covered[point] = true;
        long hit =
            random_one_in(&matrix->random, 2) ? 1 : (long)random_between(&matrix->random, 1, (uint64_t)hits[point]);
        Actor third = (Actor)random_below(&matrix->random, ACTORS);
        check_case("%s, killed at %s, then the %s killed at %s (hit %ld), then the %s", matrix->kase->name,
                   fault_name(first_point), actor_names[second], fault_name(point), hit, actor_names[third]);
        image_restore(matrix, first);
        CHECK_EQUAL(run_child(matrix, point, hit, (int)second), SIGKILL);
        check_odd(matrix, point);
        check_all(matrix, start, third, matrix->kase->dead_slots + 2, false);
        matrix->double_runs++;
    }
}

static void double_crashes(Matrix *matrix, const Image *start, const long *hits) {
    static Image first;
    for (int point = 0; point < FAULT_COUNT && !matrix->kase->retires; point++) {
        if (hits[point] == 0 || recovery_point(point) || (!matrix->full && !random_one_in(&matrix->random, 3))) {
            continue;
        }
        check_case("%s, killed at %s", matrix->kase->name, fault_name(point));
        image_restore(matrix, start);
        CHECK_EQUAL(run_child(matrix, point, 1, -1), SIGKILL);
        image_save(matrix, &first);
        second_deaths(matrix, start, &first, point, point % 2 == 0 ? WRITER : READER);
        second_deaths(matrix, start, &first, point, KEEPER);
    }
}

static void run_case(Matrix *matrix, const KillCase *kase) {
    matrix->kase = kase;
    check_case("%s, setup", kase->name);
    kill_world_make(&matrix->world);
    if (kase->setup != NULL) {
        kase->setup(&matrix->world);
    }
    log_open(&matrix->log, &matrix->world.arena);
    log_collect(&matrix->log, &matrix->world.arena, true);
    matrix->log_length = matrix->log.length;
    matrix->world.arena.control->lag_limit_ms = 0;      /* nobody publishes from here on */
    Image start = {0};
    image_save(matrix, &start);
    long hits[FAULT_COUNT];
    check_case("%s, nobody killed", kase->name);
    CHECK_EQUAL(run_child(matrix, -1, 0, -1), 0);
    memcpy(hits, matrix->hits, sizeof hits);
    if (!kase->retires) {
        content_take(matrix, &matrix->after);
        uint64_t tail = matrix->world.arena.control->ring_tail;
        CHECK(tail != start.tail || kase->records != ONE_RECORD);
    }
    image_restore(matrix, &start);
    /* Repairs what the setup left dirty, in the copy that is put back next. */
    content_take(matrix, &matrix->before);
    if (kase->retires) {
        matrix->after = matrix->before;
    }
    single_crashes(matrix, &start, hits);
    double_crashes(matrix, &start, hits);
    free(start.bytes);
    log_free(&matrix->log);
    world_free(&matrix->world);
}

static int report(const Matrix *matrix, uint64_t begun) {
    int missing = 0;
    for (int i = 0; i < FAULT_COUNT; i++) {
        if (!matrix->covered[i]) {
            printf("point never reached: %s\n", fault_name(i));
            missing++;
        }
    }
    printf("%d points, %u operations: %llu single and %llu double crashes, %llu of them after the commit point; "
           "longest action %.1f ms; %.1f s\n",
           FAULT_COUNT, kill_case_count, (unsigned long long)matrix->runs, (unsigned long long)matrix->double_runs,
           (unsigned long long)matrix->committed, (double)matrix->longest_ns / 1e6,
           (double)(clock_monotonic_ns() - begun) / 1e9);
    return missing != 0;
}

int main(int argc, char **argv) {
    static Matrix matrix;
    uint64_t seed = clock_wall_ms() % 1000000, begun = clock_monotonic_ns();
    for (int option; (option = getopt(argc, argv, "s:vf")) != -1;) {
        if (option == 's') {
            seed = strtoull(optarg, NULL, 10);
        }
        matrix.verbose = matrix.verbose || option == 'v';
        matrix.full = matrix.full || option == 'f';
    }
    printf("seed %llu\n", (unsigned long long)seed);
    check_seed(seed);
    check_context("killpoints -s %llu", (unsigned long long)seed);
    matrix.random.state = seed;
    matrix.hits = shared_memory(FAULT_COUNT * sizeof *matrix.hits);
    for (uint32_t i = 0; i < kill_case_count; i++) {
        uint64_t runs = matrix.runs, doubles = matrix.double_runs, started = clock_monotonic_ns();
        alarm(120);
        run_case(&matrix, &kill_cases[i]);
        if (matrix.verbose) {
            printf("%-45s %5llu single %5llu double  %.1f s\n", kill_cases[i].name,
                   (unsigned long long)(matrix.runs - runs), (unsigned long long)(matrix.double_runs - doubles),
                   (double)(clock_monotonic_ns() - started) / 1e9);
            fflush(stdout);
        }
    }
    return report(&matrix, begun);
}
