#include "shim.h"

/* Bumped whenever an interface in shim.h changes its meaning. */
EXPORT int shim_version(void) { return 1; }
