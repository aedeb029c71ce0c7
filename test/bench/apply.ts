/**
 * Applying a layer, without decompression and compression: 61,000 small files (497 MB) and 2 GB of large ones, from a tar in
 * memory to a volume that takes the bytes and drops them. Medians of 5; the phases of the small one by subtraction.
 */
import { apply } from "../../src/filesystem/apply.ts";
import type { Volume } from "../../src/filesystem/volume.ts";
import { TarReader } from "../../src/format/tar/reader.ts";
import { addressOf } from "../../src/native/address.ts";
import { type ByteStream, CHUNK_BYTES, type Chunk } from "../../src/native/bytestream.ts";
import { random } from "../fixtures/random.ts";
import { type Member, member } from "../fixtures/tar.ts";

const RUNS = 5;

/** Chunks that are there already. */
class MemoryStream implements ByteStream {
  #next = 0;
  constructor(readonly chunks: readonly Chunk[]) {}
  next(): Chunk | null {
    return this.chunks[this.#next++] ?? null;
  }
  close(): void {}
}

/** A blank disk that forgets what is written. */
class Sink implements Volume {
  readonly name = "sink";
  readonly size = 64 * 2 ** 30;
  dataBytes = 0;
  dataWrites = 0;
  metadataBytes = 0;
  read(_offset: number, target: Uint8Array): void {
    target.fill(0);
  }
  write(_offset: number, bytes: Uint8Array): void {
    this.metadataBytes += bytes.length;
  }
  writeData(_offset: number, _address: number, length: number): void {
    this.dataBytes += length;
    this.dataWrites++;
  }
  discard(): void {}
  flush(): void {}
}

/** Members of a tar as chunks of a stream. All content is the same random bytes, cut to length. */
function chunksOf(members: Iterable<Member>): Chunk[] {
  const chunks: Chunk[] = [];
  let bytes = new Uint8Array(CHUNK_BYTES);
  let used = 0;
  const append = (data: Uint8Array) => {
    for (let done = 0; done < data.length; ) {
      const part = data.subarray(done, done + CHUNK_BYTES - used);
      bytes.set(part, used);
      done += part.length;
      used += part.length;
      if (used < CHUNK_BYTES) continue;
      chunks.push({ bytes, address: addressOf(bytes) });
      bytes = new Uint8Array(CHUNK_BYTES);
      used = 0;
    }
  };
  for (const m of members) append(member(m));
  append(new Uint8Array(1024));
  chunks.push({ bytes: bytes.subarray(0, used), address: addressOf(bytes) });
  return chunks;
}

function* smallFiles(): Generator<Member> {
  const next = random(61);
  const content = Uint8Array.from({ length: 1 << 16 }, () => next() * 256);
  for (let i = 0; i < 61_000; i++) {
    const directory = `usr/lib/package-${Math.floor(i / 240)}/part-${Math.floor((i % 240) / 24)}`;
    if (i % 24 === 0) yield { path: `${directory}/`, mtime: 1_700_000_000 };
    const size = Math.floor(-Math.log(1 - next()) * 7400) % content.length;
    yield { path: `${directory}/file-${i}.py`, data: content.subarray(0, size), mtime: 1_700_000_000 + i };
  }
}

function* largeFiles(): Generator<Member> {
  const content = new Uint8Array(64 << 20).fill(7);
  for (let i = 0; i < 31; i++) yield { path: `large/file-${i}`, data: content, mtime: 1_700_000_000 };
}

function median(run: () => void): number {
  const times = Array.from({ length: RUNS }, () => {
    const start = performance.now();
    run();
    return performance.now() - start;
  });
  return times.sort((a, b) => a - b)[RUNS >> 1];
}

function parse(chunks: readonly Chunk[]): void {
  const reader = new TarReader(new MemoryStream(chunks), "bench");
  while (reader.next()) while (reader.read());
}

for (const [name, members] of [
  ["small", smallFiles()],
  ["large", largeFiles()],
] as const) {
  const chunks = chunksOf(members);
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.bytes.length, 0);
  let sink = new Sink();
  const parsing = median(() => parse(chunks));
  const all = median(() => {
    sink = new Sink();
    apply(sink, new TarReader(new MemoryStream(chunks), "bench"), { create: true });
  });
  const copied = new Uint8Array(CHUNK_BYTES);
  const copying = median(() => {
    for (const chunk of chunks) copied.set(chunk.bytes);
  });
  console.log(
    `${name}: ${(bytes / 1e6).toFixed(0)} MB of tar, parsing alone ${parsing.toFixed(0)} ms, parsing and applying ${all.toFixed(0)} ms`,
    `(one memcpy of it: ${copying.toFixed(0)} ms); ${(sink.metadataBytes / 1e6).toFixed(1)} MB of metadata,`,
    `${(sink.dataBytes / 1e6).toFixed(0)} MB of content in ${sink.dataWrites} writes; ${Math.round(process.memoryUsage().rss / 1e6 - bytes / 1e6)} MB beside the tar`,
  );
}
