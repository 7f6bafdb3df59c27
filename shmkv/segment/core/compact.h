/* compact.h: making room by moving entries: within a stripe, and out of a window of pages.
 *
 * Invariants:
 *   I1  A move is local to one stripe, under its lock, its owner word set: copy, odd, count of moves, place, even, free.
 *       Killed anywhere, the rebuild frees whichever copy is not linked.  (models/large.pml)
 *   I2  A move changes no version and makes no record.
 *   I3  Each call does a bounded amount of work while it holds a lock.
 */
#ifndef SHMKV_COMPACT_H
#define SHMKV_COMPACT_H

#include "store.h"

/* After ST_FULL: compacts a few stripes and, for a run of pages, empties a window.  True if a new try may succeed. */
bool compact_make_room(Call *call, uint64_t block_bytes);

#endif
