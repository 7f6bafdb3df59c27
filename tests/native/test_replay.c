#include "suite.h"
const Test replay_tests[] = {{0}};
