/** What the kernel showed of the golden inputs when upstream's tools had applied them. */
import { readFileSync } from "node:fs";
import type { WalkEntry } from "../fixtures/walk.ts";
import { golden } from "./golden.ts";

/** Where we do better than upstream (golden/README.md, apply.md section 4). */
const DIFFERENCES: Record<string, Partial<WalkEntry>> = {
  "times/y2040": { mtime: 2208988800 }, // upstream: wraps to 1904
  "times/pax-frac": { nanoseconds: 123456789 }, // upstream: dropped
};

const byPath = (a: { path: string }, b: { path: string }) => (a.path < b.path ? -1 : 1);

/** A manifest's tree in order of paths, as it should be when we apply its inputs. */
export function goldenTree(manifest: string): WalkEntry[] {
  return upstreamTree(manifest).map((entry) => ({ ...entry, ...DIFFERENCES[entry.path] }));
}

/** The same, as it was when upstream applied them. */
export function upstreamTree(manifest: string): WalkEntry[] {
  const entries: WalkEntry[] = JSON.parse(readFileSync(golden(`manifests/${manifest}.json`), "utf8"));
  return entries
    .map((entry) => ({ ...{ nanoseconds: 0 }, ...entry, path: entry.path.toWellFormed() }))
    .sort(byPath);
}

/** A walked tree, to be compared with such a one: in manifests, bytes that are no UTF-8 are lone surrogates. */
export function shownTree(entries: readonly WalkEntry[]): WalkEntry[] {
  return entries
    .map((entry) => ({ ...entry, path: Buffer.from(entry.path, "latin1").toString() }))
    .sort(byPath);
}
