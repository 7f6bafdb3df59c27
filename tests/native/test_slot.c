#include "suite.h"
const Test slot_tests[] = {{0}};
