/** Builds the shim before any test loads it, so that `bun test` alone always tests the C code in the tree. */

import { join } from "node:path";
import { $ } from "bun";

await $`${process.execPath} ${join(import.meta.dir, "../build.ts")} shim`.quiet();
