/**
 * One layer: a compressed tar in, an overlaybd layer file out, in a single pass. Decompression runs on a thread of its
 * own, compression on all cores; this thread parses and applies. Blocking: for a worker thread or a tool.
 */
import { openFileBlob } from "../blob/file.ts";
import { OverlaybdError } from "../error.ts";
import { apply } from "../filesystem/apply.ts";
import { LayerFile } from "../format/layerfile.ts";
import { LayerWriter } from "../format/lsmt/writer.ts";
import { TarReader } from "../format/tar/reader.ts";
import type { Codec } from "../format/zfile/blocks.ts";
import { VirtualDisk } from "../image/disk.ts";
import { assemble, openLayers } from "../image/open.ts";
import { openStream, type StreamSummary } from "../native/inflate.ts";
import { LayerVolume } from "./volume.ts";

export interface LayerJob {
  /** Descriptor that delivers the source layer: tar, tar.gz or tar.zst. */
  readonly fd: number;
  /** What to call the source in messages. */
  readonly source: string;
  /** Check these of the source; absent: whoever delivers it does. */
  readonly expected?: { readonly digest: string; readonly size: number };
  /** Files of the layers below, bottom first; none: the file system is made. */
  readonly lowers: readonly string[];
  /** File to write; not made durable. */
  readonly output: string;
  /** Size of the disk in bytes. */
  readonly size: number;
  readonly uuid: string;
  readonly parentUuid?: string;
  readonly compression: { readonly codec: Codec; readonly blockSize: number; readonly threads: number };
}

/**
 * Builds the layer; returns the size of the output in bytes. What is left of a failed build is nothing.
 * @throws OverlaybdError
 */
export async function buildLayer(job: LayerJob): Promise<number> {
  if (job.lowers.length === 0) return writeLayer(job, null);
  const layers = await openLayers(job.lowers.map((path) => () => openFileBlob(path)));
  const image = assemble(layers);
  try {
    const disk = new VirtualDisk(image.tables);
    try {
      return writeLayer(job, disk);
    } finally {
      disk.close();
    }
  } finally {
    await image.close();
  }
}

function writeLayer(job: LayerJob, below: VirtualDisk | null): number {
  const { codec, blockSize, threads } = job.compression;
  const zfile = { codec, blockSize, threads, checksum: true, overwriteHeader: true };
  // What does not fit on the disk is refused by the file system; this bounds what no file holds (padding, headers).
  const stream = openStream(job.fd, { hashInput: job.expected !== undefined, maximumOutput: 4 * job.size });
  try {
    const file = new LayerFile(job.output, { tar: true, zfile, scratch: true });
    try {
      const writer = new LayerWriter(file, { size: job.size, uuid: job.uuid, parentUuid: job.parentUuid });
      const volume = new LayerVolume(job.size, writer, below);
      apply(volume, new TarReader(stream, job.source), { create: below === null });
      if (job.expected) checkSource(job.expected, stream.summary(), job.source);
      writer.finish();
      return file.finish();
    } finally {
      file.abandon();
    }
  } finally {
    stream.close();
  }
}

function checkSource(expected: { digest: string; size: number }, summary: StreamSummary, name: string): void {
  if (summary.inputBytes === expected.size && `sha256:${summary.inputDigest}` === expected.digest) return;
  throw new OverlaybdError(
    "E_CORRUPT",
    `${name}: failed to verify digest ${expected.digest}: read ${summary.inputBytes} of ${expected.size} bytes with digest sha256:${summary.inputDigest}`,
  );
}
