/* record.h: see record.c. */
#ifndef SHMKV_RECORD_H
#define SHMKV_RECORD_H

#include "write.h"

/* Sets record_bytes, body_crc and the table of a batch; returns the kind, and what goes into the header's count. */
uint8_t record_describe(const Arena *arena, Write *write, uint16_t *count);
/* Ring lock held, room checked. */
void record_copy(Call *call, Write *write, uint8_t kind, uint16_t count, uint64_t lsn);
void record_put_bytes(Arena *arena, uint64_t lsn, const void *from, uint64_t length);

#endif
