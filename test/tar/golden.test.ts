/** The golden layers, read from gzip, against what the kernel showed after upstream had applied them. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { closeSync, openSync, readFileSync } from "node:fs";
import type { TarEntry } from "../../src/format/tar/entry.ts";
import { TarReader } from "../../src/format/tar/reader.ts";
import { openStream } from "../../src/native/inflate.ts";
import { golden, goldenDir } from "../golden/golden.ts";

interface Shown {
  path: string;
  type: string;
  mode: string;
  uid: number;
  gid: number;
  mtime: number;
  size?: number;
  sha256?: string;
  target?: string;
  rdev?: [number, number];
  xattrs?: Record<string, string>;
}

const TYPES: Record<string, string> = { dir: "directory", char: "character" };

/** The last member of each path, with the SHA-256 of its content. */
function lastMembers(file: string): Map<string, TarEntry & { sha256: string }> {
  const members = new Map<string, TarEntry & { sha256: string }>();
  const fd = openSync(file, "r");
  const stream = openStream(fd);
  try {
    const reader = new TarReader(stream, file);
    for (let entry = reader.next(); entry; entry = reader.next()) {
      const hash = createHash("sha256");
      for (let piece = reader.read(); piece; piece = reader.read()) hash.update(piece.bytes);
      members.set(entry.path, { ...entry, sha256: hash.digest("hex") });
    }
  } finally {
    stream.close();
    closeSync(fd);
  }
  return members;
}

test.skipIf(goldenDir === null)("layer1: every member is shown as we read it", () => {
  const members = lastMembers(golden("inputs/layer1.tar.gz"));
  const shown: Shown[] = JSON.parse(readFileSync(golden("manifests/layer1.json"), "utf8"));
  let compared = 0;
  for (const s of shown) {
    const m = members.get(s.path);
    if (!m || m.type === "hardlink") continue;
    compared++;
    expect([s.path, m.type as string]).toEqual([s.path, TYPES[s.type] ?? s.type]);
    if (s.type !== "symlink") expect([s.path, m.mode]).toEqual([s.path, Number.parseInt(s.mode, 8)]);
    // Upstream wraps times after 2038 at 32 bits (golden README, "quirks").
    expect([s.path, m.uid, m.gid, m.mtime | 0]).toEqual([s.path, s.uid, s.gid, s.mtime]);
    if (s.type === "file") expect([s.path, m.size, m.sha256]).toEqual([s.path, s.size ?? -1, s.sha256 ?? ""]);
    if (s.rdev) expect([s.path, m.devmajor, m.devminor]).toEqual([s.path, ...s.rdev]);
    const xattrs = [...(m.xattrs ?? [])].map(([name, value]) => [
      name,
      Buffer.from(value).toString("base64"),
    ]);
    expect([s.path, Object.fromEntries(xattrs)]).toEqual([s.path, s.xattrs ?? {}]);
  }
  expect(compared).toBeGreaterThan(1000);
});
