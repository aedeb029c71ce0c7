/** Writing a ZFile (zfile.md section 7). Compression runs on native threads; the bytes do not depend on their number. */

import { crc32c } from "../../native/codec.ts";
import { BlockCompressor } from "../../native/compressor.ts";
import { type Output, type OutputSink, writeAt, writing } from "../output.ts";
import type { Codec } from "./blocks.ts";
import { BLOCK_FLAGS, encodeHeader, HEADER_BYTES, type ZFileHeader } from "./header.ts";

export interface ZFileOptions {
  readonly codec: Codec;
  /** Uncompressed bytes in a block: a power of two from 4096 to 65536; upstream cannot read 65536. */
  readonly blockSize: number;
  /** Put a checksum behind every block. */
  readonly checksum: boolean;
  /** Rewrite the header at the end, so that readers need not fetch the trailer. */
  readonly overwriteHeader: boolean;
  /** Compressing threads, at least 1. */
  readonly threads: number;
}

/** A ZFile from byte `start` of a file, which must end at or before it. */
export class ZFileWriter implements OutputSink {
  position = 0;
  storedSize = 0;
  private readonly compressor: BlockCompressor;

  constructor(
    private readonly output: Output,
    private readonly start: number,
    private readonly options: ZFileOptions,
  ) {
    this.writeHeader(0, BLOCK_FLAGS.header, {
      indexOffset: 0,
      blockCount: 0,
      plainSize: 0,
      indexChecksum: 0,
    });
    const target = { fd: output.fd, offset: start + HEADER_BYTES };
    this.compressor = writing(output.path, () => new BlockCompressor({ ...target, ...options }));
  }

  write(bytes: Uint8Array): void {
    writing(this.output.path, () => this.compressor.append(bytes));
    this.position += bytes.length;
  }

  writeFrom(address: number, length: number): void {
    writing(this.output.path, () => this.compressor.appendFrom(address, length));
    this.position += length;
  }

  writeZeros(length: number): void {
    writing(this.output.path, () => this.compressor.appendZeros(length));
    this.position += length;
  }

  finish(): void {
    const { lengths, end } = writing(this.output.path, () => this.compressor.finish());
    this.close();
    const jumpTable = new Uint8Array(lengths.buffer, lengths.byteOffset, lengths.byteLength);
    const indexOffset = end - this.start;
    const index = {
      indexOffset,
      blockCount: lengths.length,
      plainSize: this.position,
      indexChecksum: crc32c(jumpTable),
    };
    writeAt(this.output, jumpTable, end);
    this.writeHeader(indexOffset + jumpTable.length, BLOCK_FLAGS.trailer, index);
    if (this.options.overwriteHeader) this.writeHeader(0, BLOCK_FLAGS.overwrittenHeader, index);
    this.storedSize = indexOffset + jumpTable.length + HEADER_BYTES;
  }

  close(): void {
    this.compressor.close();
  }

  private writeHeader(
    offset: number,
    flags: number,
    index: Pick<ZFileHeader, "indexOffset" | "blockCount" | "plainSize" | "indexChecksum">,
  ): void {
    const { codec: algorithm, blockSize, checksum } = this.options;
    const header = encodeHeader({ flags, ...index, blockSize, algorithm, dictionaryBytes: 0, checksum });
    writeAt(this.output, header, this.start + offset);
  }
}
