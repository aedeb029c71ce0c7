/** `overlaybd-zfile`: compresses a file to a ZFile, extracts one, or verifies its checksums (cli.md). */
import { availableParallelism } from "node:os";
import { openFileBlob } from "../blob/file.ts";
import { OverlaybdError } from "../error.ts";
import { LayerFile } from "../format/layerfile.ts";
import { Section } from "../format/section.ts";
import type { ByteSource } from "../format/source.ts";
import { unwrapTar } from "../format/tar/wrapper.ts";
import { CODEC_LZ4, CODEC_ZSTD, isBlockSize } from "../format/zfile/blocks.ts";
import { isZFile, openZFile } from "../format/zfile/open.ts";
import { verifyChecksums, ZFileSource } from "../format/zfile/reader.ts";
import { defineTool, flag, optionalPositional, optionOr, type Parsed, positional } from "./_tool.ts";

/** Uncompressed bytes extracted at once. */
const PIECE_BYTES = 1 << 20;
const FAILED = 255;

const args = {
  source: positional(
    "source_file",
    "text",
    "Input; without target_file the output, and input comes from stdin",
  ),
  target: optionalPositional("target_file", "text", "Output"),
  tar: flag(["-t"], "Wrap the output in a tar; with -x: the input is wrapped in one"),
  extract: flag(["-x"], "Extract source_file"),
  verify: flag(["--verify"], "Check the block checksums of source_file"),
  force: flag(["-f"], "Replace an existing output"),
  algorithm: optionOr(["--algorithm"], "text", "lz4", "Compression: lz4 or zstd"),
  blockSize: optionOr(["--bs"], "unsigned", 4, "Block size in KiB: 4, 8, 16, 32 or 64"),
  verbose: flag(["--verbose"], "Say more"),
};
type Arguments = Parsed<typeof args>;

export const tool = defineTool({
  name: "overlaybd-zfile",
  summary: "Compress a file to a ZFile, or extract or verify one",
  arguments: args,
  run: (args) => (args.verify ? verify(args) : args.extract ? extract(args) : compress(args)),
});

async function compress({ source, target, ...options }: Arguments): Promise<number> {
  const blockSize = options.blockSize * 1024;
  if (!isBlockSize(blockSize)) {
    throw new OverlaybdError("E_USAGE", `--bs ${options.blockSize}: must be 4, 8, 16, 32 or 64`);
  }
  const input = target === undefined ? Bun.stdin : Bun.file(source);
  const zfile = {
    codec: options.algorithm === "zstd" ? CODEC_ZSTD : CODEC_LZ4,
    blockSize,
    checksum: true,
    overwriteHeader: false,
    threads: availableParallelism(),
  } as const;
  const output = new LayerFile(target ?? source, { tar: options.tar, zfile, replace: options.force });
  try {
    for await (const bytes of reading(source, input.stream())) output.write(bytes);
    output.finish();
  } finally {
    output.abandon();
  }
  return 0;
}

async function extract({ source, target, tar, force }: Arguments): Promise<number> {
  if (target === undefined) throw new OverlaybdError("E_USAGE", "-x needs both source_file and target_file");
  const blob = await openFileBlob(source);
  try {
    const stored = tar ? await layerInside(blob) : blob;
    const plain = new ZFileSource(stored, await openZFile(stored));
    const output = new LayerFile(target, { mode: 0o700, replace: force });
    try {
      for (let at = 0; at < plain.size; at += PIECE_BYTES) {
        output.write(await plain.read(at, Math.min(PIECE_BYTES, plain.size - at)));
      }
      output.finish();
    } finally {
      output.abandon();
    }
  } finally {
    await blob.close();
  }
  return 0;
}

async function verify({ source }: Arguments): Promise<number> {
  const blob = await openFileBlob(source);
  try {
    const stored = await layerInside(blob);
    if (!(await isZFile(stored))) {
      process.stdout.write(`format error! ${source} is not a zfile blob.\n`);
      return FAILED;
    }
    await verifyChecksums(stored, await openZFile(stored));
    process.stdout.write(`${source} is a valid zfile blob.\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof OverlaybdError)) throw error;
    process.stdout.write(`${source} is not a valid zfile blob or checksum can't be found.\n`);
    process.stderr.write(`overlaybd-zfile: ${error.message}\n`);
    return FAILED;
  } finally {
    await blob.close();
  }
}

/** The bytes behind the header of the tar that may wrap them. */
async function layerInside(blob: ByteSource): Promise<ByteSource> {
  const { start, size } = await unwrapTar(blob);
  return new Section(blob, start, size);
}

async function* reading(path: string, stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  try {
    yield* stream;
  } catch (cause) {
    throw new OverlaybdError("E_IO", `reading ${path} failed: ${(cause as Error).message}`, { cause });
  }
}
