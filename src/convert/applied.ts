/** Applies one layer to a disk that is there already: a plain file, or the writable layer of an image. */
import { closeSync, openSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { type ApplySummary, apply } from "../filesystem/apply.ts";
import { WritableLayerVolume } from "../filesystem/layer_volume.ts";
import { RawVolume } from "../filesystem/raw.ts";
import type { Volume } from "../filesystem/volume.ts";
import { openWritableLayer } from "../format/lsmt/pair.ts";
import { TarReader } from "../format/tar/reader.ts";
import { loadImageConfig } from "../image/config.ts";
import { VirtualDisk } from "../image/disk.ts";
import { type ImageOptions, type OpenImage, openImage } from "../image/open.ts";
import { addressOf } from "../native/address.ts";
import { openStream } from "../native/inflate.ts";

/** Parts in which the blobs of remote layers are fetched. */
const FETCH_BYTES = 4 << 20;

export interface ApplyJob {
  /** Path of a tar, tar.gz, tar.zst, or a FIFO that delivers one. */
  readonly input: string;
  /** Make the file system first. */
  readonly mkfs: boolean;
  /** What the uncompressed input must hash to ("sha256:…"); "" when it does not matter. */
  readonly checksum: string;
}

/** Applies to a plain file or block device. @throws OverlaybdError */
export function applyToRaw(job: ApplyJob, path: string): ApplySummary {
  const volume = new RawVolume(path);
  try {
    // A new file system takes for granted that what it does not write is zero.
    if (job.mkfs) volume.discard(0, volume.size);
    return applyTo(job, volume);
  } finally {
    volume.close();
  }
}

/**
 * Applies to the disk of an image config, whose writable layer receives what changes.
 * @throws OverlaybdError E_CONFIG when the image has no writable layer.
 */
export async function applyToImage(
  job: ApplyJob,
  config: string,
  options: ImageOptions,
): Promise<ApplySummary> {
  const { upper, ...rest } = await loadImageConfig(config);
  if (!upper) throw new OverlaybdError("E_CONFIG", `${config} has no upper: there is nothing to write to`);
  if (upper.target !== "")
    throw new OverlaybdError("E_UNSUPPORTED", `${config}: TurboOCI layers cannot be applied to yet`);
  const image = await openImage(rest, options);
  try {
    await fetchAll(image);
    return applyToLayer(job, upper, image);
  } finally {
    await image.close();
  }
}

/** Reading the layers below while applying cannot wait for the network. */
async function fetchAll(image: OpenImage): Promise<void> {
  for (const [layer, { blob }] of image.layers.entries()) {
    if (!blob.view.valid) continue;
    for (let offset = 0; offset < blob.size; offset += FETCH_BYTES) {
      await image.fetch({ layer, offset, length: Math.min(FETCH_BYTES, blob.size - offset) });
    }
  }
}

function applyToLayer(job: ApplyJob, upper: { data: string; index: string }, image: OpenImage): ApplySummary {
  const disk = new VirtualDisk(image.tables);
  try {
    const layer = openWritableLayer(upper.data, upper.index);
    try {
      if (layer.size === 0) layer.resize(disk.size);
      const below = (offset: number, target: Uint8Array) => {
        if (disk.read(offset, target.length, addressOf(target)) !== null)
          throw new OverlaybdError(
            "E_IO",
            "a block of a lower layer left the cache while it was needed; try again",
          );
      };
      const summary = applyTo(
        job,
        new WritableLayerVolume(layer, image.layers.length > 0 ? { read: below } : undefined),
      );
      layer.flush();
      return summary;
    } finally {
      layer.close();
    }
  } finally {
    disk.close();
  }
}

function applyTo(job: ApplyJob, volume: Volume): ApplySummary {
  const fd = openInput(job.input);
  try {
    const stream = openStream(fd, { hashOutput: job.checksum !== "" });
    try {
      const verify = () => {
        const actual = job.checksum === "" ? "" : `sha256:${stream.summary().outputDigest}`;
        if (actual !== job.checksum)
          throw new OverlaybdError(
            "E_CORRUPT",
            `${job.input}: its checksum is ${actual}, not ${job.checksum}`,
          );
      };
      return apply(volume, new TarReader(stream, job.input), { create: job.mkfs, verify });
    } finally {
      stream.close();
    }
  } finally {
    closeSync(fd);
  }
}

function openInput(path: string): number {
  try {
    return openSync(path, "r");
  } catch (cause) {
    throw new OverlaybdError("E_IO", `cannot open ${path}: ${(cause as Error).message}`, { cause });
  }
}
