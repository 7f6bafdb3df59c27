#include "suite.h"
const Test lock_tests[] = {{0}};
