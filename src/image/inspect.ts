/** What an image is made of, as plain data. */
import { allocatedSectors, SECTOR_BYTES, type SegmentTable, segmentLength } from "../format/lsmt/segments.ts";
import type { Verity } from "../format/verity/descriptor.ts";
import { TreeShape } from "../format/verity/shape.ts";
import { CODEC_LZ4 } from "../format/zfile/blocks.ts";
import type { BlobLayer } from "./layer.ts";
import type { OpenImage } from "./open.ts";
import { readUpper, type UpperInfo } from "./upper.ts";

/** All sizes are bytes. */
export interface ImageReport {
  readonly virtualSize: number;
  /** Bottom first, as in an image config. */
  readonly layers: readonly LayerReport[];
  readonly upper?: UpperInfo & { readonly data: string; readonly index: string };
  /** What the read-only layers are together. */
  readonly merged: Coverage;
}

export interface Coverage {
  readonly segments: number;
  /** Bytes of the disk that data is stored for. */
  readonly dataBytes: number;
  /** Bytes that are said to be zero, hiding lower layers. */
  readonly zeroedBytes: number;
  /** Bytes that nothing is said about: lower layers show through, or zeros. */
  readonly holeBytes: number;
}

export interface VerityReport {
  /** Digest of the topmost node, as the layer's descriptor has it. */
  readonly root: string;
  /** Bytes of the blob that the tree is made over. */
  readonly dataBytes: number;
  readonly treeBytes: number;
}

export interface LayerReport extends Coverage {
  readonly name: string;
  readonly blobBytes: number;
  readonly tar: boolean;
  readonly compression: "none" | "lz4" | "zstd";
  /** Of the compression; 0 without. */
  readonly blockSize: number;
  readonly checksums: boolean;
  /** The Merkle tree that what is fetched is checked against. */
  readonly verity?: VerityReport;
  /** Bytes of the layer, uncompressed. */
  readonly plainBytes: number;
  readonly virtualSize: number;
  readonly uuid: string;
  readonly parentUuid: string;
  /** The message it was committed with. */
  readonly userTag: string;
}

/** @throws OverlaybdError when the writable layer, if there is one, cannot be read. */
export async function inspectImage({ tables, layers }: OpenImage): Promise<ImageReport> {
  return {
    virtualSize: tables.size,
    layers: layers.map(inspectLayer).reverse(),
    upper: tables.upper && { ...tables.upper, ...(await readUpper(tables.upper)) },
    merged: coverage(tables.index, tables.size),
  };
}

function inspectLayer({ blob, disk, content }: BlobLayer): LayerReport {
  const { blocks } = disk;
  return {
    name: blob.name,
    blobBytes: blob.size,
    tar: disk.start > 0,
    compression: blocks ? (blocks.codec === CODEC_LZ4 ? "lz4" : "zstd") : "none",
    blockSize: blocks?.blockSize ?? 0,
    checksums: blocks?.checksum ?? false,
    verity: blob.verity && inspectTree(blob.verity, blob.name),
    plainBytes: content.source.size,
    virtualSize: content.size,
    uuid: content.uuid,
    parentUuid: content.parentUuid,
    userTag: content.userTag,
    ...coverage(content.segments, content.size),
  };
}

function inspectTree({ root, dataBytes }: Verity, name: string): VerityReport {
  return { root: `sha256:${root}`, dataBytes, treeBytes: new TreeShape(dataBytes, name).treeBytes };
}

function coverage(table: SegmentTable, size: number): Coverage {
  let covered = 0;
  for (let i = 0; i < table.count; i++) covered += segmentLength(table, i);
  const data = allocatedSectors(table);
  return {
    segments: table.count,
    dataBytes: data * SECTOR_BYTES,
    zeroedBytes: (covered - data) * SECTOR_BYTES,
    holeBytes: Math.max(0, size - covered * SECTOR_BYTES),
  };
}
