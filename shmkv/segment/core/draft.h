/* draft.h: see draft.c.  Lock needed: the stripe of the item, its owner word set, unless said otherwise. */
#ifndef SHMKV_DRAFT_H
#define SHMKV_DRAFT_H

#include "write.h"

/* No lock: drafts a large value into a run of the slot; a put whose run can't be had is drafted later. */
void draft_prepare_large(Call *call, Item *item);
/* ST_FULL: what was allocated for this and other items goes back by draft_drop. */
Status draft_item(Call *call, Item *item);
/* Fills the slot's redo list, and item->old. */
void draft_fill_redo(Call *call, Write *write);
void draft_drop(Call *call, Write *write);
/* No lock: runs of the slot that no stripe adopted. */
void draft_drop_slot_runs(Call *call, Write *write);

#endif
