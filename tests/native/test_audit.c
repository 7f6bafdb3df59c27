#include "suite.h"
const Test audit_tests[] = {{0}};
