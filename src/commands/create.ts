/** `overlaybd-create`: makes the files of a writable layer, perhaps with a file system on it (cli.md). */
import { rmSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { WritableLayerVolume } from "../filesystem/layer_volume.ts";
import { mkfs } from "../filesystem/mkfs.ts";
import { RawVolume } from "../filesystem/raw.ts";
import { LocalFile } from "../format/lsmt/file.ts";
import { createWritableLayer } from "../format/lsmt/pair.ts";
import { parseUuid } from "../format/lsmt/uuid.ts";
import { defineTool, flag, option, type Parsed, positional } from "./_tool.ts";

const args = {
  data: positional("data_file", "text", "Data file to create"),
  index: positional("index_file", "text", "Index file to create"),
  vsize: positional("vsize", "unsigned", "Virtual size in GiB; 0: that of the image below"),
  parentUuid: option(["-u"], "text", "UUID of the parent layer"),
  sparse: flag(["-s"], "Make a sparse layer"),
  turbo: flag(["--turboOCI", "--fastoci"], "Make a TurboOCI layer"),
  raw: flag(["--raw"], "Make a plain sparse file of the given size"),
  mkfs: flag(["--mkfs"], "Make an ext4 file system on it"),
  verbose: flag(["--verbose"], "Say more"),
};
type Arguments = Parsed<typeof args>;

export const tool = defineTool({
  name: "overlaybd-create",
  summary: "Create a writable layer",
  arguments: args,
  run(args) {
    if (args.turbo) throw new OverlaybdError("E_UNSUPPORTED", "TurboOCI layers cannot be created yet");
    const size = args.vsize * 2 ** 30;
    if (args.raw) createRaw(args, size);
    else createLayer(args, size);
    process.stdout.write("overlaybd-create has created files SUCCESSFULLY\n");
    return 0;
  },
});

function createLayer({ data, index, sparse, mkfs: withFileSystem, ...args }: Arguments, size: number): void {
  const parentUuid = parseUuid(args.parentUuid ?? "") ?? undefined;
  const layer = createWritableLayer(data, index, { size, parentUuid, sparse });
  orRemove([data, index], () => {
    try {
      if (withFileSystem) mkfs(new WritableLayerVolume(layer));
    } finally {
      layer.close();
    }
  });
}

function createRaw({ data, index, mkfs: withFileSystem }: Arguments, size: number): void {
  createFile(data, size);
  orRemove([data], () => createFile(index, 0));
  orRemove([data, index], () => {
    if (!withFileSystem) return;
    const volume = new RawVolume(data);
    try {
      mkfs(volume);
    } finally {
      volume.close();
    }
  });
}

/** Makes a file of `size` bytes, all holes. @throws OverlaybdError E_EXISTS, E_IO */
function createFile(path: string, size: number): void {
  const file = LocalFile.open(path, "create");
  orRemove([path], () => {
    try {
      file.truncate(size);
    } finally {
      file.close();
    }
  });
}

/** Removes the files when `step` fails. */
function orRemove(paths: readonly string[], step: () => void): void {
  try {
    step();
  } catch (error) {
    for (const path of paths) rmSync(path, { force: true });
    throw error;
  }
}
