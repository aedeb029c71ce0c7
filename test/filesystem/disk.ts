/** Disks for the tests of file systems: sparse files that layers are applied to, and what is on them afterwards. */
import { createHash } from "node:crypto";
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ApplyOptions, apply } from "../../src/filesystem/apply.ts";
import { RawVolume } from "../../src/filesystem/raw.ts";
import { TarReader } from "../../src/format/tar/reader.ts";
import { openStream } from "../../src/native/inflate.ts";
import { nextDataRange } from "../../src/native/range.ts";
import { fsckComplaint, mounted } from "../fixtures/loop.ts";
import { type Member, tar } from "../fixtures/tar.ts";
import { type WalkEntry, walk } from "../fixtures/walk.ts";

export const GIB = 2 ** 30;

/** Runs `use` with a new disk of zeros, and removes it. */
export function withDisk<T>(size: number, use: (disk: Disk) => T): T {
  const directory = mkdtempSync(join(tmpdir(), "overlaybd-fs-"));
  try {
    return use(new Disk(directory, size));
  } finally {
    rmSync(directory, { recursive: true });
  }
}

export class Disk {
  readonly path: string;
  #fresh = true;

  constructor(
    readonly directory: string,
    size: number,
  ) {
    this.path = join(directory, "disk");
    const fd = openSync(this.path, "w");
    ftruncateSync(fd, size);
    closeSync(fd);
  }

  volume<T>(use: (volume: RawVolume) => T): T {
    const volume = new RawVolume(this.path);
    try {
      return use(volume);
    } finally {
      volume.close();
    }
  }

  /** Applies a layer; the first one makes the file system. */
  apply(layer: Member[] | Uint8Array | string, options: ApplyOptions = {}) {
    let path = layer;
    if (typeof path !== "string") {
      path = join(this.directory, "layer.tar");
      writeFileSync(path, layer instanceof Uint8Array ? layer : tar(layer as Member[]));
    }
    const fd = openSync(path as string, "r");
    const stream = openStream(fd);
    try {
      const summary = this.volume((volume) =>
        apply(volume, new TarReader(stream, "layer"), { create: this.#fresh, ...options }),
      );
      this.#fresh = false;
      return summary;
    } finally {
      stream.close();
      closeSync(fd);
    }
  }

  /** Everything on it but lost+found, by path. Throws when e2fsck finds anything wrong. */
  tree(): Map<string, WalkEntry> {
    const complaint = fsckComplaint(this.path);
    if (complaint) throw new Error(complaint);
    const entries = mounted(this.path, walk).filter(({ path }) => path !== "lost+found");
    return new Map(entries.map((entry) => [entry.path, entry]));
  }

  paths(): string[] {
    return [...this.tree().keys()].filter((path) => path !== ".");
  }

  /** Of what is not zero, and where it is. */
  digest(): string {
    const hash = createHash("sha256");
    const fd = openSync(this.path, "r");
    const zeros = Buffer.alloc(4096);
    const block = Buffer.alloc(4096);
    for (let range = nextDataRange(fd, 0); range; range = nextDataRange(fd, range.end)) {
      for (let offset = range.begin; offset < range.end; offset += block.length) {
        readSync(fd, block, 0, block.length, offset);
        if (!block.equals(zeros)) hash.update(`${offset}:`).update(block);
      }
    }
    closeSync(fd);
    return hash.digest("hex");
  }
}
