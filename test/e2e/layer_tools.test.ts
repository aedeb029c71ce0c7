/** The golden inputs through the layer tools' command lines (create, apply, commit), as upstream's convertor calls them. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, rmSync } from "node:fs";
import { COMMITTED, CREATED, SERVICE, Workspace } from "../commands/workspace.ts";
import { fsckComplaint, mounted } from "../fixtures/loop.ts";
import { type WalkEntry, walk } from "../fixtures/walk.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { goldenTree, shownTree, upstreamTree } from "../golden/tree.ts";

setDefaultTimeout(60_000);

let files: Workspace;
beforeAll(() => {
  files = new Workspace();
});
afterEach(() => {
  for (const name of readdirSync(files.folder)) if (name !== "service.json") rmSync(files.path(name));
});
afterAll(() => files.remove());

/** Makes a layer of the image that `lowers` are the lower layers of; returns the path of its file. */
async function build(
  input: string,
  lowers: readonly string[],
  { gib, create, commit }: { gib: string; create: readonly string[]; commit: readonly string[] },
): Promise<string> {
  const name = `layer${lowers.length}`;
  const pair = [`${name}.data`, `${name}.index`];
  const size = lowers.length === 0 ? [gib, "--mkfs"] : ["0"];
  const created = await files.run("create", ...pair, ...size, ...create);
  expect(created).toEqual({ code: 0, out: CREATED, err: "" });
  const config = files.config(`${name}.json`, lowers, pair);
  const applied = await files.run("apply", golden(`inputs/${input}`), config, ...SERVICE);
  expect(applied).toEqual({ code: 0, out: "overlaybd-apply done\n", err: "\n" });
  const committed = await files.run("commit", ...pair, `${name}.layer`, ...commit);
  expect(committed).toEqual({ code: 0, out: COMMITTED, err: "\n" });
  for (const file of pair) rmSync(files.path(file));
  return files.path(`${name}.layer`);
}

/** @param complaints what e2fsck may say of it besides what it always says */
async function expectTree(
  layers: readonly string[],
  tree: readonly WalkEntry[],
  complaints: readonly string[] = [],
): Promise<void> {
  const config = files.config("image.json", layers);
  expect(await files.run("export", config, "disk", ...SERVICE)).toEqual({ code: 0, out: "", err: "" });
  const disk = files.path("disk");
  const usual = /^$|^e2fsck |^Pass \d: /;
  const said = (fsckComplaint(disk) ?? "").split("\n");
  expect(said.filter((line) => !usual.test(line) && !line.startsWith(`${disk}: `))).toEqual([...complaints]);
  expect(shownTree(mounted(disk, walk))).toEqual([...tree]);
}

/** Of every file system that upstream has made, and nothing of ours makes better (golden/README.md). */
const LOST_AND_FOUND = [
  "Problem in HTREE directory inode 11: block #2 not referenced",
  "Invalid HTREE directory inode 11 (/lost+found).  Clear HTree index? no",
];

const WAYS = {
  "append-only, LZ4 in a tar": { gib: "64", create: [], commit: ["-z", "-t"] },
  "sparse, zstd": { gib: "64", create: ["-s"], commit: ["-z", "--algorithm", "zstd"] },
};

describe.skipIf(goldenDir === null)("the golden inputs", () => {
  test.each(Object.entries(WAYS))("%s: layers read back as the manifests say", async (_, way) => {
    const bottom = await build("layer1.tar.gz", [], way);
    const top = await build("layer2.tar.gz", [bottom], way);
    await expectTree([bottom, top], goldenTree("layer1+layer2"));
  });

  test("a small disk, uncompressed archive", async () => {
    const layer = await build("mini.tar", [], { gib: "2", create: ["-s"], commit: ["-zt"] });
    await expectTree([layer], goldenTree("mini"));
  });

  test("on top of upstream's layer", async () => {
    const bottom = golden("lsmt/layer1.lz4.tar");
    const top = await build("layer2.tar.gz", [bottom], WAYS["append-only, LZ4 in a tar"]);
    await expectTree([bottom, top], upstreamTree("layer1+layer2"), LOST_AND_FOUND);
  });
});
