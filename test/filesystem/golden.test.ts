/** What the kernel shows of the golden inputs, applied by us, against what it shows of them applied by upstream. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mounted } from "../fixtures/loop.ts";
import { walk } from "../fixtures/walk.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { goldenTree, shownTree } from "../golden/tree.ts";
import { GIB, withDisk } from "./disk.ts";

setDefaultTimeout(60_000);

for (const [manifest, size, layers] of [
  ["mini", 2 * GIB, ["mini.tar"]],
  ["layer1", 64 * GIB, ["layer1.tar.gz"]],
  ["layer1+layer2", 64 * GIB, ["layer1.tar.gz", "layer2.tar.gz"]],
] as const) {
  test.skipIf(goldenDir === null)(`${manifest} mounts as upstream's does`, () => {
    withDisk(size, (disk) => {
      for (const layer of layers) disk.apply(golden(`inputs/${layer}`));
      disk.tree(); // e2fsck
      expect(shownTree(mounted(disk.path, walk))).toEqual(goldenTree(manifest));
    });
  });
}
