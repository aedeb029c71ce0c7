/** `overlaybd mount` and `overlaybd umount` as people run them, with upstream's own layers. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  type Stats,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LayerFile } from "../../src/format/layerfile.ts";
import { LayerWriter } from "../../src/format/lsmt/writer.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { encodeManifest, MediaType } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { canServeFuse } from "../device/support.ts";
import { golden, goldenDir } from "../golden/golden.ts";

setDefaultTimeout(60_000);

interface Entry {
  readonly path: string;
  readonly type: "dir" | "file" | "symlink" | "fifo" | "char" | "block" | "socket";
  readonly mode: string;
  readonly uid: number;
  readonly gid: number;
  readonly mtime: number;
  readonly size?: number;
  readonly sha256?: string;
  readonly target?: string;
}

interface State {
  readonly directory: string;
  readonly device: string;
  readonly pid: number;
  /** The kernel's number of what the device showed when it was mounted; another one uses the device for something else. */
  readonly sequence: string | null;
}

interface MountStats {
  readonly image: { fetchedBytes: number; imageBytes: number };
  readonly device: { readBytes: number; writtenBytes: number; errors: number };
}

let folder: string;
let directory: string;
let records: string;
let config: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-mount-"));
  directory = join(folder, "mnt");
  records = join(folder, "run");
  config = join(folder, "config.v1.json");
  mkdirSync(directory);
});
afterEach(async () => {
  if (mounts().length > 0) await overlaybd("umount", directory);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function overlaybd(...words: string[]): Promise<{ code: number; out: string; err: string }> {
  const main = join(import.meta.dir, "../../src/main.ts");
  const child = Bun.spawn([process.execPath, main, ...words, "--run-dir", records], {
    cwd: folder,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, out, err };
}

async function mounted(...words: string[]): Promise<State> {
  const { code, out, err } = await overlaybd("mount", ...words, "--json");
  expect(err).toBe("");
  expect(code).toBe(0);
  const state = JSON.parse(out);
  return { ...state, sequence: shown(state.device) };
}

/** The sequence number of what a loop device shows, or null when it shows nothing. */
function shown(device: string): string | null {
  const folder = `/sys/block/${device.slice("/dev/".length)}`;
  return existsSync(`${folder}/loop`) ? readFileSync(`${folder}/diskseq`, "utf8").trim() : null;
}

async function unmounted(): Promise<MountStats | null> {
  const { code, out, err } = await overlaybd("umount", directory, "--json");
  expect(err).toBe("");
  expect(code).toBe(0);
  return JSON.parse(out);
}

function mounts(): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.includes(folder));
}

/** That nothing is left: mount, record, process; and the loop device shows nothing, or what another test shows by it. */
async function expectNothingLeft({ pid, device, sequence }: State): Promise<void> {
  expect(mounts()).toEqual([]);
  expect(readdirSync(records)).toEqual([]);
  expect(isRunning(pid)).toBe(false);
  expect(sequence).not.toBeNull();
  expect(shown(device)).not.toBe(sequence);
}

/** A process that has ended may be a zombie for as long as its parent, the container's init, does not look. */
function isRunning(pid: number): boolean {
  try {
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

async function ended(pid: number): Promise<void> {
  while (isRunning(pid)) await Bun.sleep(5);
}

function typeOf(stat: Stats): Entry["type"] {
  if (stat.isDirectory()) return "dir";
  if (stat.isSymbolicLink()) return "symlink";
  if (stat.isFIFO()) return "fifo";
  if (stat.isCharacterDevice()) return "char";
  if (stat.isBlockDevice()) return "block";
  return stat.isSocket() ? "socket" : "file";
}

/** What the manifest says of a path, as far as the entry has it. */
function describeAs(root: string, entry: Entry): Partial<Entry> {
  const path = Buffer.concat([Buffer.from(`${root}/`), bytesOf(entry.path)]);
  const stat = lstatSync(path);
  const seen: Record<string, unknown> = {
    path: entry.path,
    type: typeOf(stat),
    mode: (stat.mode & 0o7777).toString(8).padStart(4, "0"),
    uid: stat.uid,
    gid: stat.gid,
    mtime: Math.floor(stat.mtimeMs / 1000),
  };
  if (entry.size !== undefined) seen.size = stat.size;
  if (entry.sha256 !== undefined) seen.sha256 = createHash("sha256").update(readFileSync(path)).digest("hex");
  if (entry.target !== undefined) seen.target = readlinkSync(path);
  return seen;
}

/** Names that are not UTF-8 stand in the manifest with each odd byte b as the lone surrogate U+DC00 + b. */
function bytesOf(path: string): Buffer {
  const pieces = path.split(/([\udc80-\udcff])/);
  return Buffer.concat(
    pieces.map((piece) =>
      /^[\udc80-\udcff]$/.test(piece) ? Buffer.from([piece.charCodeAt(0) & 0xff]) : Buffer.from(piece),
    ),
  );
}

/** Paths of everything in a directory, relative to it, one character for each byte; itself is ".". */
function pathsBelow(root: string): string[] {
  const paths = ["."];
  const visit = (below: Buffer) => {
    for (const name of readdirSync(Buffer.concat([Buffer.from(`${root}/`), below]), { encoding: "buffer" })) {
      const path = below.length === 0 ? Buffer.from(name) : Buffer.concat([below, Buffer.from("/"), name]);
      paths.push(path.toString("latin1"));
      if (lstatSync(Buffer.concat([Buffer.from(`${root}/`), path])).isDirectory()) visit(path);
    }
  };
  visit(Buffer.alloc(0));
  return paths;
}

const FIELDS = ["path", "type", "mode", "uid", "gid", "mtime", "size", "sha256", "target"] as const;

function expectTree(root: string): void {
  const manifest: Entry[] = JSON.parse(readFileSync(golden("manifests/layer1+layer2.json"), "utf8"));
  const wanted = manifest.map((entry) => bytesOf(entry.path).toString("latin1"));
  expect(pathsBelow(root).sort()).toEqual(wanted.sort());
  for (const entry of manifest) {
    const expected = Object.fromEntries(
      FIELDS.filter((f) => entry[f] !== undefined).map((f) => [f, entry[f]]),
    );
    expect(describeAs(root, entry)).toEqual(expected);
  }
}

describe.skipIf(goldenDir === null || !canServeFuse)("mount", () => {
  const layers = ["lsmt/layer1.lz4.tar", "lsmt/layer2.lz4.tar"];
  beforeAll(() => {
    writeFileSync(config, JSON.stringify({ lowers: layers.map((layer) => ({ file: golden(layer) })) }));
  });

  test("an image config: the tree is what upstream's kernel device shows; nothing is left after umount", async () => {
    const state = await mounted(config, directory);
    expect(state.directory).toBe(directory);
    expect(mounts().join()).toContain("ro,");
    expectTree(directory);
    const stats = (await unmounted()) as MountStats;
    expect(stats.device.readBytes).toBeGreaterThan(0);
    expect(stats.device.errors).toBe(0);
    await expectNothingLeft(state);
  });

  test("umount(8) ends the server too", async () => {
    const state = await mounted(config, directory);
    expect(Bun.spawnSync(["umount", directory]).exitCode).toBe(0);
    await ended(state.pid);
    await expectNothingLeft(state);
  });

  test("SIGTERM unmounts", async () => {
    const state = await mounted(config, directory);
    process.kill(state.pid, "SIGTERM");
    await ended(state.pid);
    await expectNothingLeft(state);
  });

  test("SIGTERM while it is in use: served until the last user is gone", async () => {
    const state = await mounted(config, directory);
    const user = Bun.spawn(["sh", "-c", "read go && ls bigdir | wc -l"], {
      cwd: directory,
      stdin: "pipe",
      stdout: "pipe",
    });
    process.kill(state.pid, "SIGTERM");
    while (mounts().length > 0) await Bun.sleep(5);
    expect(isRunning(state.pid)).toBe(true);
    user.stdin.write("go\n");
    user.stdin.end();
    expect(Number(await new Response(user.stdout).text())).toBeGreaterThan(10);
    await ended(state.pid);
    await expectNothingLeft(state);
  });

  test("umount of a mount in use is refused, and works later", async () => {
    const state = await mounted(config, directory);
    const user = Bun.spawn(["sleep", "60"], { cwd: directory });
    const refused = await overlaybd("umount", directory);
    expect(refused.code).toBe(1);
    expect(refused.err).toContain("in use");
    user.kill();
    await user.exited;
    await unmounted();
    await expectNothingLeft(state);
  });

  test("a directory is mounted once, and what is not mounted cannot be unmounted", async () => {
    await mounted(config, directory);
    const again = await overlaybd("mount", config, directory);
    expect(again.code).toBe(1);
    expect(again.err).toBe(`overlaybd mount: ${directory} is mounted by overlaybd already\n`);
    await unmounted();
    const nothing = await overlaybd("umount", directory);
    expect(nothing.code).toBe(1);
    expect(nothing.err).toContain("nothing mounted");
  });

  test("what cannot be mounted is said by the command, and leaves nothing", async () => {
    const broken = join(folder, "broken.json");
    writeFileSync(broken, JSON.stringify({ lowers: [{ file: golden("inputs/pattern.bin") }] }));
    const empty = join(folder, "empty");
    const layer = new LayerFile(empty);
    new LayerWriter(layer, { size: 1 << 20 }).finish();
    layer.finish();
    const cases: [string[], RegExp][] = [
      [[broken, directory], /pattern\.bin/],
      [[join(folder, "absent.json"), directory], /absent\.json/],
      [[config, join(folder, "nowhere")], /nowhere/],
      [[config, directory, "--rw"], /--upper/],
      [[empty, directory], /no ext4 file system/],
    ];
    for (const [words, message] of cases) {
      const { code, out, err } = await overlaybd("mount", ...words);
      expect(code).toBeGreaterThan(0);
      expect(out).toBe("");
      expect(err).toMatch(message);
      expect(mounts()).toEqual([]);
    }
  });

  test("what is written is kept in the upper layer, through umount and as a committed layer", async () => {
    const upper = join(folder, "upper");
    const content = Buffer.alloc(3 << 20, "overlaybd ");
    const first = await mounted(config, directory, "--upper", upper);
    writeFileSync(join(directory, "new"), content);
    rmSync(join(directory, "bigdir"), { recursive: true });
    await unmounted();
    await expectNothingLeft(first);

    await mounted(config, directory, "--upper", upper);
    expect(readFileSync(join(directory, "new")).equals(content)).toBe(true);
    expect(existsSync(join(directory, "bigdir"))).toBe(false);
    await unmounted();

    const layer = join(folder, "layer3");
    const [data, index] = [join(upper, "writable_data"), join(upper, "writable_index")];
    const main = join(import.meta.dir, "../../src/main.ts");
    const commit = Bun.spawnSync([process.execPath, main, "commit", data, index, layer, "-z", "-t"]);
    expect(commit.exitCode).toBe(0);
    const three = join(folder, "three.json");
    writeFileSync(
      three,
      JSON.stringify({ lowers: [...layers.map(golden), layer].map((file) => ({ file })) }),
    );
    await mounted(three, directory);
    expect(readFileSync(join(directory, "new")).equals(content)).toBe(true);
    expect(existsSync(join(directory, "bigdir"))).toBe(false);
    await unmounted();
  });

  test("kill -9 of the server: umount cleans up, and what was synced is there", async () => {
    const upper = join(folder, "killed");
    const state = await mounted(config, directory, "--upper", upper);
    writeFileSync(join(directory, "synced"), "kept");
    Bun.spawnSync(["sync", "-f", directory]);
    process.kill(state.pid, "SIGKILL");
    await ended(state.pid);
    const again = await overlaybd("mount", config, directory);
    expect(again.err).toContain("clean up with");
    expect(await unmounted()).toBeNull();
    await expectNothingLeft(state);

    await mounted(config, directory, "--upper", upper);
    expect(readFileSync(join(directory, "synced"), "utf8")).toBe("kept");
    await unmounted();
  });

  test("in the foreground: serves until it is told to stop, and prints what happened", async () => {
    const main = join(import.meta.dir, "../../src/main.ts");
    const words = ["mount", config, directory, "--foreground", "--run-dir", records];
    const server = Bun.spawn([process.execPath, main, ...words], { cwd: folder, stdout: "pipe" });
    const reader = server.stdout.getReader();
    expect(new TextDecoder().decode((await reader.read()).value)).toContain("is mounted at");
    expect(existsSync(join(directory, "bigdir"))).toBe(true);
    server.kill("SIGTERM");
    expect(new TextDecoder().decode((await reader.read()).value)).toContain("read");
    expect(await server.exited).toBe(0);
    expect(mounts()).toEqual([]);
  });
});

describe.skipIf(goldenDir === null || !canServeFuse)("mount from a registry", () => {
  let layout: string;
  let registry: RegistryServer;
  let port: number;

  beforeAll(async () => {
    layout = join(folder, "layout");
    const target = await repositoryAccess()(parseReference(`oci:${layout}`), { create: true });
    const push = async (bytes: Uint8Array<ArrayBuffer>, mediaType: string) => {
      const digest = digestOf(bytes);
      const annotations = { "containerd.io/snapshot/overlaybd/blob-digest": digest };
      const descriptor = { mediaType, digest, size: bytes.length, annotations };
      await target.pushBlob(descriptor, new Blob([bytes]));
      return descriptor;
    };
    const layers = [];
    for (const name of ["lsmt/layer1.lz4.tar", "lsmt/layer2.lz4.tar"])
      layers.push(await push(new Uint8Array(readFileSync(golden(name))), MediaType.ociLayer));
    const image = await push(new TextEncoder().encode("{}"), MediaType.ociConfig);
    const manifest = encodeManifest({ mediaType: MediaType.ociManifest, config: image, layers });
    await target.pushManifest("obd", MediaType.ociManifest, manifest);
    registry = await serveRegistry({ directory: layout, readOnly: true });
    port = Number(new URL(registry.url).port);
  });
  afterAll(() => registry.stop());

  test("reads fetch what they need; without the registry they fail, and with it again they do not", async () => {
    const reference = `127.0.0.1:${port}/test/image:obd`;
    const cache = join(folder, "cache");
    const service = join(folder, "service.json");
    writeFileSync(service, JSON.stringify({ readDeadline: 1 }));
    const words = [reference, directory, "--plain", "--cache-dir", cache, "--service_config_path", service];
    const state = await mounted(...words);
    await registry.stop();
    const manifest: Entry[] = JSON.parse(readFileSync(golden("manifests/layer1+layer2.json"), "utf8"));
    const biggest = manifest.reduce((a, b) => ((a.size ?? 0) > (b.size ?? 0) ? a : b));
    // Another process reads: the registry that it waits for is in this one.
    const reader = ["sha256sum", join(directory, biggest.path)];
    const offline = Bun.spawn(reader, {
      stdout: "ignore",
      stderr: "pipe",
      env: { ...process.env, LC_ALL: "C" },
    });
    expect(await new Response(offline.stderr).text()).toContain("Input/output error");
    expect(await offline.exited).toBe(1);

    registry = await serveRegistry({ directory: layout, readOnly: true, hostname: "127.0.0.1", port });
    const online = Bun.spawn(reader, { stdout: "pipe" });
    expect(await new Response(online.stdout).text()).toStartWith(biggest.sha256 as string);
    const stats = (await unmounted()) as MountStats;
    expect(stats.image.fetchedBytes).toBeGreaterThan(0);
    expect(stats.image.fetchedBytes).toBeLessThan(stats.image.imageBytes);
    expect(stats.device.errors).toBeGreaterThan(0);
    await expectNothingLeft(state);
  });
});
