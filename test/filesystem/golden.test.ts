/** What the kernel shows of the golden inputs, applied by us, against what it shows of them applied by upstream. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { mounted } from "../fixtures/loop.ts";
import { walk } from "../fixtures/walk.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { GIB, withDisk } from "./disk.ts";

/** Where we do better than upstream (golden/README.md, apply.md section 4). */
const DIFFERENCES: Record<string, Record<string, unknown>> = {
  "times/y2040": { mtime: 2208988800 }, // upstream: wraps to 1904
  "times/pax-frac": { nanoseconds: 123456789 }, // upstream: dropped
};

/** A path as text. In the manifests bytes that are no UTF-8 are lone surrogates (Python's surrogateescape). */
const shown = (path: string) => Buffer.from(path, "latin1").toString();

for (const [manifest, size, layers] of [
  ["mini", 2 * GIB, ["mini.tar"]],
  ["layer1", 64 * GIB, ["layer1.tar.gz"]],
  ["layer1+layer2", 64 * GIB, ["layer1.tar.gz", "layer2.tar.gz"]],
] as const) {
  test.skipIf(goldenDir === null)(`${manifest} mounts as upstream's does`, () => {
    withDisk(size, (disk) => {
      for (const layer of layers) disk.apply(golden(`inputs/${layer}`));
      disk.tree(); // e2fsck
      const actual = mounted(disk.path, walk).map((entry) => ({ ...entry, path: shown(entry.path) }));
      const wanted = (
        JSON.parse(readFileSync(golden(`manifests/${manifest}.json`), "utf8")) as { path: string }[]
      ).map((entry) => ({
        nanoseconds: 0,
        ...entry,
        path: entry.path.toWellFormed(),
        ...DIFFERENCES[entry.path],
      }));
      const byPath = (a: { path: string }, b: { path: string }) => (a.path < b.path ? -1 : 1);
      expect(actual.sort(byPath)).toEqual(wanted.sort(byPath) as typeof actual);
    });
  });
}
