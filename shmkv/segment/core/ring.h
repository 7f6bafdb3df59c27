/* ring.h: the part of the log that is in memory: append (writers), drain and publish (persister), wait (both).
 *
 * Invariants:
 *   I1  head <= durable_lsn <= written_lsn <= tail <= head + ring_bytes; each only grows. (Without a log: head only.)
 *   I2  Byte n of the log lies at ring[n % ring_bytes] while head <= n < tail.
 *   I3  Only the holder of the ring lock moves the tail; only the persister moves the other three
 *       (a store without a log: the holder of the ring lock moves head).
 */
#ifndef SHMKV_RING_H
#define SHMKV_RING_H

#include "arena.h"

/* ST_OK when a record of that many bytes fits now and neither lag limit, log state nor need word forbids it.
 * Without a log: when keeper or supervisor lives, or the keeper's last sign is younger than the lag limit. */
Status ring_admits(Arena *arena, uint64_t record_bytes);
/* Whether the keeper of a store without a log is silent beyond the lag limit, and its supervisor gone. */
bool ring_unattended(const Arena *arena, uint64_t now_ms);
/* The keeper's sign of life, for a store without a log; wakes writers that waited for one. */
void ring_attend(Arena *arena);
/* For a writer that was not admitted: sleeps until something is published or until_ns. */
Status ring_wait_room(Arena *arena, uint64_t need_bytes, uint64_t until_ns);

/* Waits until durable_lsn >= lsn or until_ns; asks the persister for a sync if `request`.  ST_BUSY on time-out. */
Status ring_wait_durable(Arena *arena, uint64_t lsn, bool request, uint64_t until_ns);

/* ---- persister ------------------------------------------------------------------------------------- */
/* Sleeps until tail > lsn and (a quarter of the ring is used, or a sync is wanted), or until_ns; woken by writers. */
void ring_wait_work(Arena *arena, uint64_t lsn, uint64_t until_ns);
void ring_publish_written(Arena *arena, uint64_t lsn);
/* collected_ms: coarse clock when the records up to lsn were taken from the ring. */
void ring_publish_durable(Arena *arena, uint64_t lsn, uint64_t collected_ms);
/* After a write: wake a sleeping persister if this record needs it.  Called with no lock held. */
void ring_after_append(Arena *arena, uint64_t used_bytes);

/* Fills a record header (all but lsn-dependent fields), and its CRC. */
uint32_t record_header_crc(const RecordHeader *header, uint32_t seed);

#endif
