/** Opening a ZFile: from any random-access bytes to its block table (zfile.md sections 3 and 5). */
import { OverlaybdError } from "../../error.ts";
import { crc32c } from "../../native/codec.ts";
import type { ByteSource } from "../source.ts";
import {
  type BlockTable,
  BlockTableBuilder,
  blockCount,
  CHECKSUM_BYTES,
  CODEC_LZ4,
  CODEC_ZSTD,
  type Codec,
  isBlockSize,
  longestStored,
} from "./blocks.ts";
import { decodeHeader, FLAG, HEADER_BYTES, hasMagic, isIntact, type ZFileHeader } from "./header.ts";

/** Blocks a file may have: 1 TiB in blocks of 4 KiB, whose table takes 1 GiB of memory. */
const MAX_BLOCKS = 2 ** 28;
/** The jump table is read in pieces of this many bytes. */
const PIECE_BYTES = 1 << 20;
const ENTRY_BYTES = 4;

/**
 * Whether `source` is a ZFile.
 * @throws OverlaybdError E_CORRUPT when it starts like one, but with a damaged header; and what reading it throws.
 */
export async function isZFile(source: ByteSource): Promise<boolean> {
  if (source.size < HEADER_BYTES) return false;
  const block = await source.read(0, HEADER_BYTES);
  if (!hasMagic(block)) return false;
  if (!isIntact(block)) throw corrupt(source, "the header's digest does not match");
  return true;
}

/**
 * Reads and checks header or trailer and the jump table. Memory: 4.01 bytes a block in the end, and at no time more than
 * a few times the bytes that were really read, whatever sizes header and source claim.
 * @throws OverlaybdError E_CORRUPT when bytes contradict the format or a checksum, E_UNSUPPORTED for a compression or
 * block size no tool writes, E_LIMIT for more blocks than supported; and what reading the source throws.
 */
export async function openZFile(source: ByteSource): Promise<BlockTable> {
  const header = await readHeader(source);
  const { codec, blocksStart } = checkHeader(source, header);
  const { blockSize, checksum, plainSize } = header;
  const builder = new BlockTableBuilder({ codec, blockSize, checksum, plainSize }, blocksStart);
  const shortest = (checksum ? CHECKSUM_BYTES : 0) + 1;
  const longest = longestStored(blockSize, checksum);
  const room = header.indexOffset - blocksStart;
  const tableBytes = header.blockCount * ENTRY_BYTES;
  let sum = 0;
  for (let at = 0; at < tableBytes; at += PIECE_BYTES) {
    const piece = await source.read(header.indexOffset + at, Math.min(PIECE_BYTES, tableBytes - at));
    sum = crc32c(piece, sum);
    const view = new DataView(piece.buffer, piece.byteOffset, piece.length);
    for (let i = 0; i < piece.length; i += ENTRY_BYTES) {
      const stored = view.getUint32(i, true);
      if (stored < shortest || stored > longest) {
        const block = (at + i) / ENTRY_BYTES;
        throw corrupt(source, `the jump table gives block ${block} a length of ${stored} bytes`);
      }
      builder.add(stored);
    }
    if (builder.storedBytes > room) throw corrupt(source, "the jump table's blocks run into the jump table");
  }
  if (header.flags & FLAG.digested && sum !== header.indexChecksum) {
    throw corrupt(source, "the jump table's checksum does not match");
  }
  return builder.finish();
}

/** The authoritative block: the header if it was overwritten at the end, else the trailer (section 2.2). */
async function readHeader(source: ByteSource): Promise<ZFileHeader> {
  if (source.size < HEADER_BYTES) throw corrupt(source, `${source.size} bytes are too few for a ZFile`);
  const first = await source.read(0, HEADER_BYTES);
  if (!hasMagic(first)) throw corrupt(source, "not a ZFile: the magic number is missing");
  if (!isIntact(first)) throw corrupt(source, "the header's digest does not match");
  const header = decodeHeader(first, source.name);
  if (!(header.flags & FLAG.header)) throw corrupt(source, "the first block is not a header");
  if (header.flags & FLAG.overwritten) return header;

  if (!(header.flags & FLAG.data)) throw corrupt(source, "the header is not that of a data file");
  if (source.size < 2 * HEADER_BYTES)
    throw corrupt(source, "the trailer is missing: was writing interrupted?");
  const last = await source.read(source.size - HEADER_BYTES, HEADER_BYTES);
  if (!hasMagic(last)) throw corrupt(source, "the trailer is missing: was writing interrupted?");
  if (!isIntact(last)) throw corrupt(source, "the trailer's digest does not match");
  const trailer = decodeHeader(last, source.name);
  const kind = FLAG.header | FLAG.data | FLAG.sealed;
  if ((trailer.flags & kind) !== (FLAG.data | FLAG.sealed))
    throw corrupt(source, "the last block is no trailer");
  return trailer;
}

function checkHeader(source: ByteSource, header: ZFileHeader): { codec: Codec; blocksStart: number } {
  const { algorithm, blockSize, checksum, indexOffset, plainSize } = header;
  if (algorithm !== CODEC_LZ4 && algorithm !== CODEC_ZSTD) {
    throw unsupported(source, `compression ${algorithm}; only 1 (LZ4) and 2 (zstd) exist`);
  }
  if (!isBlockSize(blockSize)) {
    throw unsupported(
      source,
      `a block size of ${blockSize} bytes; a power of two from 4096 to 65536 is needed`,
    );
  }
  if (header.blockCount !== blockCount(plainSize, blockSize)) {
    throw corrupt(source, `${header.blockCount} blocks of ${blockSize} do not make ${plainSize} bytes`);
  }
  if (header.blockCount > MAX_BLOCKS) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${source.name}: ${header.blockCount} blocks; at most ${MAX_BLOCKS} can be read`,
    );
  }
  // Nothing is allocated for blocks and entries that the file has no room for.
  const blocksStart = HEADER_BYTES + header.dictionaryBytes;
  const indexEnd = header.flags & FLAG.header ? source.size : source.size - HEADER_BYTES;
  const shortest = checksum ? CHECKSUM_BYTES + 1 : 1;
  if (indexOffset + header.blockCount * ENTRY_BYTES > indexEnd) {
    throw corrupt(
      source,
      `the jump table at ${indexOffset} does not fit in ${source.size} bytes: truncated?`,
    );
  }
  if (blocksStart + header.blockCount * shortest > indexOffset) {
    throw corrupt(source, `${header.blockCount} blocks do not fit before the jump table at ${indexOffset}`);
  }
  return { codec: algorithm, blocksStart };
}

function corrupt(source: ByteSource, what: string): OverlaybdError {
  return new OverlaybdError("E_CORRUPT", `${source.name}: ${what}`);
}

function unsupported(source: ByteSource, what: string): OverlaybdError {
  return new OverlaybdError("E_UNSUPPORTED", `${source.name}: the ZFile uses ${what}`);
}
