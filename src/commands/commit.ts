/** `overlaybd-commit`: packs a writable layer into a layer blob, or seals it in place (cli.md). */
import { availableParallelism } from "node:os";
import { OverlaybdError } from "../error.ts";
import { LayerFile, type LayerFileOptions } from "../format/layerfile.ts";
import { commit } from "../format/lsmt/commit.ts";
import { LocalFile } from "../format/lsmt/file.ts";
import { openLayer } from "../format/lsmt/layer.ts";
import { openWritableLayer } from "../format/lsmt/pair.ts";
import { seal } from "../format/lsmt/seal.ts";
import type { SegmentTable } from "../format/lsmt/segments.ts";
import { parseUuid } from "../format/lsmt/uuid.ts";
import type { ByteSource } from "../format/source.ts";
import { CODEC_LZ4, CODEC_ZSTD, isBlockSize } from "../format/zfile/blocks.ts";
import { defineTool, flag, option, optionalPositional, optionOr, type Parsed, positional } from "./_tool.ts";

const args = {
  data: positional("data_file", "existing", "Data file of the layer, or a sealed layer"),
  index: optionalPositional("index_file", "text", "Index file; with --commit_sealed the output"),
  output: optionalPositional("commit_file", "text", "Output"),
  message: option(["-m"], "text", "Message to store in the layer, at most 256 bytes"),
  uuid: option(["--uuid"], "text", "UUID of the new layer"),
  parentUuid: option(["-p", "--parent-uuid"], "text", "UUID of the parent layer"),
  compress: flag(["-z"], "Compress to a ZFile"),
  tar: flag(["-t"], "Wrap the output in a tar; only together with -z"),
  force: flag(["-f"], "Replace an existing output"),
  algorithm: optionOr(["--algorithm"], "text", "lz4", "Compression: lz4 or zstd"),
  blockSize: optionOr(
    ["--bs"],
    "unsigned",
    4,
    "Block size in KiB: 4, 8, 16, 32 or 64 (which upstream cannot read)",
  ),
  turbo: flag(["--turboOCI", "--fastoci"], "Commit a TurboOCI layer"),
  seal: flag(["--seal"], "Seal data_file in place"),
  sealed: flag(["--commit_sealed"], "data_file is a sealed layer"),
  threads: option(["--compress_threads"], "unsigned", "Compressing threads (default: one for each core)"),
  upload: option(["--upload"], "text", "Upload while writing"),
  uploadPiece: optionOr(["--upload_bs"], "unsigned", 262144, "Upload in pieces of this many KiB"),
  credentials: option(["--cred_file_path"], "existing", "Credentials for the upload"),
  tlsKey: option(["--tls_key_path"], "existing", "Key of the client certificate for the upload"),
  tlsCertificate: option(["--tls_cert_path"], "existing", "Client certificate for the upload"),
  verbose: flag(["--verbose"], "Say more"),
};
type Arguments = Parsed<typeof args>;

export const tool = defineTool({
  name: "overlaybd-commit",
  summary: "Commit a writable layer to a layer blob, or seal it",
  arguments: args,
  async run(args) {
    if (args.turbo) throw new OverlaybdError("E_UNSUPPORTED", "TurboOCI layers cannot be committed yet");
    if (args.upload !== undefined) throw new OverlaybdError("E_UNSUPPORTED", "--upload is not supported yet");
    const output = outputOptions(args);
    if (args.seal) sealPair(args);
    else {
      await (args.sealed ? commitSealed(args, output) : commitPair(args, output));
      // The digest of the upload would stand here; programs read the line.
      process.stderr.write("\n");
      process.stdout.write("overlaybd-commit has committed files SUCCESSFULLY\n");
    }
    return 0;
  },
});

/** @throws OverlaybdError E_USAGE for an unknown algorithm or block size, even where they have no effect. */
function outputOptions(args: Arguments): LayerFileOptions {
  const blockSize = args.blockSize * 1024;
  if (!isBlockSize(blockSize)) {
    throw new OverlaybdError("E_USAGE", `--bs ${args.blockSize}: must be 4, 8, 16, 32 or 64`);
  }
  if (args.algorithm !== "lz4" && args.algorithm !== "zstd") {
    throw new OverlaybdError("E_USAGE", `--algorithm ${args.algorithm}: must be lz4 or zstd`);
  }
  if (!args.compress) {
    if (args.tar || args.blockSize !== 4 || args.algorithm !== "lz4") {
      process.stderr.write("overlaybd-commit: -t, --bs and --algorithm have no effect without -z\n");
    }
    return { replace: args.force };
  }
  const zfile = {
    codec: args.algorithm === "zstd" ? CODEC_ZSTD : CODEC_LZ4,
    blockSize,
    checksum: true,
    overwriteHeader: true,
    threads: Math.max(1, args.threads ?? availableParallelism()),
  } as const;
  return { replace: args.force, tar: args.tar, zfile };
}

function sealPair({ data, index }: Arguments): void {
  const layer = openWritableLayer(data, required(index, "index_file", "--seal"));
  try {
    seal(layer);
  } finally {
    layer.close();
  }
}

async function commitPair(args: Arguments, options: LayerFileOptions): Promise<void> {
  const index = required(args.index, "index_file", "a commit");
  const output = required(args.output, "commit_file", "a commit");
  const layer = openWritableLayer(args.data, index);
  try {
    if (layer.lostEntries > 0) {
      const lost = `${layer.lostEntries} unfinished writes`;
      process.stderr.write(
        `overlaybd-commit: ${args.data}: ${lost} were lost when the layer was last used\n`,
      );
    }
    const { file: source, size, parentUuid } = layer;
    await write(args, { source, segments: layer.segments(), size, parentUuid }, output, options);
  } finally {
    layer.close();
  }
}

async function commitSealed(args: Arguments, options: LayerFileOptions): Promise<void> {
  const output = required(args.index, "output", "--commit_sealed");
  const file = LocalFile.open(args.data, "read");
  try {
    await write(args, await openLayer(file), output, options);
  } finally {
    file.close();
  }
}

interface Input {
  readonly source: ByteSource;
  readonly segments: SegmentTable;
  readonly size: number;
  readonly parentUuid: string;
}

async function write(args: Arguments, input: Input, path: string, options: LayerFileOptions): Promise<void> {
  const file = new LayerFile(path, options);
  try {
    await commit(input.segments, [input.source], file, {
      size: input.size,
      uuid: parseUuid(args.uuid ?? "") ?? undefined,
      parentUuid: parseUuid(args.parentUuid ?? "") ?? input.parentUuid,
      userTag: args.message,
    });
    file.finish();
  } finally {
    file.abandon();
  }
}

function required(path: string | undefined, name: string, what: string): string {
  if (path === undefined) throw new OverlaybdError("E_USAGE", `${what} needs ${name}`);
  return path;
}
