/**
 * Lists of files that are wanted first (cache-download-prefetch.md section 6.5): one path a line, directories with
 * everything below them when they end with a slash, or a slash and an asterisk.
 */
import { consola } from "consola";
import { OverlaybdError } from "../error.ts";
import { Ext4Reader, type Inode } from "../format/ext4.ts";
import { SECTOR_BYTES, walkSegments } from "../format/lsmt/segments.ts";
import type { ByteSource } from "../format/source.ts";
import { VirtualDisk } from "./disk.ts";
import type { OpenImage } from "./open.ts";
import { readDisk } from "./read.ts";
import type { WantedUnits } from "./wanted.ts";

const MAX_LIST_BYTES = 65536;
/** Most files and directories that a list may lead to. */
const MAX_INODES = 65536;
/** What the disk is read in: a block of the file system, most of the time. */
const PAGE_BYTES = 4096;

/** Paths of a list; every char is one byte. Lines that are no path are left out. */
export function parseFileList(bytes: Uint8Array, name: string): string[] {
  if (bytes.length > MAX_LIST_BYTES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${name} is no trace, and as a list of files too long: ${bytes.length} bytes of at most ${MAX_LIST_BYTES}`,
    );
  }
  const lines = Buffer.from(bytes).toString("latin1").split("\n");
  // `trim` would also take away what is a part of a letter in UTF-8.
  const paths = lines.map((line) => line.replace(/^[ \t\r]+|[ \t\r]+$/g, ""));
  return paths.filter((path) => path !== "" && !path.includes("\0"));
}

/**
 * Adds what the files of a list are stored in, in their order.
 * @throws OverlaybdError E_LIMIT; E_UNSUPPORTED when the image holds no ext4 file system; E_CORRUPT; what fetching throws.
 */
export async function addListedFiles(
  wanted: WantedUnits,
  paths: readonly string[],
  image: Pick<OpenImage, "tables" | "fetch">,
): Promise<void> {
  const { index, size } = image.tables;
  // The file system on the read-only layers, whatever is written on top of them meanwhile.
  const disk = new VirtualDisk({ ...image.tables, upper: undefined, readLog: undefined });
  try {
    const files = await Ext4Reader.open(sourceOf(disk, image));
    const add = (_start: number, length: number, layer: number, moffset: number) => {
      if (layer >= 0) wanted.add(layer, moffset * SECTOR_BYTES, length * SECTOR_BYTES);
    };
    let absent = 0;
    const seen = new Set<number>();
    for (const path of paths) {
      const found = await files.find(path.replace(/\*$/, ""));
      if (!found) absent++;
      for await (const inode of below(files, found, /\/\*?$/.test(path), seen)) {
        for (const { offset, length } of await files.extents(inode)) {
          walkSegments(index, offset / SECTOR_BYTES, Math.min(offset + length, size) / SECTOR_BYTES, add);
        }
      }
    }
    if (absent > 0) consola.warn(`${absent} of ${paths.length} files to prefetch are not in the image`);
  } finally {
    disk.close();
  }
}

/** The file, or what is below the directory if that is asked for, without following links; each once. */
async function* below(
  files: Ext4Reader,
  from: Inode | null,
  recursive: boolean,
  seen: Set<number>,
): AsyncGenerator<Inode, void> {
  const left = from ? [from] : [];
  for (let inode = left.pop(); inode; inode = left.pop()) {
    if (seen.has(inode.number)) continue;
    seen.add(inode.number);
    if (seen.size > MAX_INODES) {
      throw new OverlaybdError("E_LIMIT", `the list leads to more than ${MAX_INODES} files`);
    }
    if (inode.kind === "file") yield inode;
    if (inode.kind !== "directory" || !recursive) continue;
    const names = [...(await files.list(inode))].sort(([a], [b]) => (a < b ? 1 : -1));
    for (const [, number] of names) left.push(await files.inode(number));
  }
}

function sourceOf(disk: VirtualDisk, image: Pick<OpenImage, "fetch">): ByteSource {
  const name = "the image";
  return {
    name,
    size: disk.size,
    async read(offset, length) {
      if (!(offset >= 0 && length >= 0 && offset + length <= disk.size)) {
        throw new OverlaybdError(
          "E_CORRUPT",
          `the file system of ${name} refers to byte ${offset}, behind its end`,
        );
      }
      const begin = Math.floor(offset / PAGE_BYTES) * PAGE_BYTES;
      const bytes = new Uint8Array(Math.ceil((offset + length - begin) / PAGE_BYTES) * PAGE_BYTES);
      await readDisk(image, disk, begin, bytes);
      return bytes.subarray(offset - begin, offset - begin + length);
    },
  };
}
