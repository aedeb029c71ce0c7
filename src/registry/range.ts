/**
 * Reading ranges of blobs. Somebody's read(2) waits for each, so they are hedged, and what may pass is tried again for
 * as long as the read deadline allows. Long ranges are read piece by piece as they arrive, each as patiently.
 */
import { OverlaybdError } from "../error.ts";
import type { RemoteRepository } from "./client.ts";
import { verifyDigest } from "./digest.ts";
import { type Answer, RangeBody, type Sending } from "./range-body.ts";
import type { RangeCheck } from "./repository.ts";
import { retry } from "./retry.ts";
import { type HttpRequest, type HttpResponse, quote, SLOWEST_RATE } from "./transport.ts";

/** A blob up to this size is read as a whole from a registry that ignores Range. */
const WHOLE_BLOB_LIMIT = 8 * 1024 * 1024;

/** Milliseconds for which an image is taken to be only just being opened. */
const OPENING_MS = 30_000;

/** Bytes of a blob. */
interface BlobRange {
  readonly digest: string;
  readonly offset: number;
  readonly length: number;
  /** What the blob's size should be, if known. */
  readonly size?: number;
}

export class RangeReader {
  /**
   * From when on (`performance.now()`) waiting is better than failing. A registry that does not answer while an image
   * is opened is more likely misnamed than down; one that has answered before is down.
   */
  #patientFrom = performance.now() + OPENING_MS;

  constructor(private readonly repository: RemoteRepository) {}

  /** See `Repository.blobRange`. */
  async read(
    digest: string,
    offset: number,
    length: number,
    size?: number,
    check?: RangeCheck,
  ): Promise<Uint8Array> {
    checkNumbers(digest, offset, length);
    if (length === 0) return new Uint8Array();
    const range = { digest, offset, length, size };
    return this.#persist(length, false, (sending) => this.#fetch(range, sending, check));
  }

  /** See `Repository.blobPieces`. */
  async *pieces(
    digest: string,
    offset: number,
    length: number,
    piece: number,
    size?: number,
  ): AsyncGenerator<Uint8Array, void> {
    checkNumbers(digest, offset, length);
    const end = offset + length;
    const body = new RangeBody((at, sending) =>
      this.#open({ digest, offset: at, length: end - at, size }, sending),
    );
    const buffer = new Uint8Array(Math.min(piece, length));
    try {
      for (let at = offset; at < end; at += piece) {
        const range = { digest, offset: at, length: Math.min(piece, end - at), size };
        const target = buffer.subarray(0, range.length);
        yield await this.#persist(range.length, true, (sending, extra) =>
          extra ? this.#fetch(range, sending) : body.read(at, target, sending),
        );
      }
      await body.finish();
    } finally {
      body.stop();
    }
  }

  /**
   * Sends until the bytes have come.
   * @param streamed whether they are a part of what comes in one answer
   */
  async #persist(
    length: number,
    streamed: boolean,
    send: (sending: Sending, extra: boolean) => Promise<Uint8Array>,
  ): Promise<Uint8Array> {
    const { deadline, hedge, reading } = this.repository.options;
    const patient = performance.now() >= this.#patientFrom;
    const policy = (patient ? reading : undefined) ?? this.repository.policy;
    const bytes = await retry(policy, (attempt, left) => {
      // For all requests of the attempt together.
      const end = performance.now() + Math.min(deadline + length / SLOWEST_RATE, left);
      const begin = (signal: AbortSignal, extra: boolean) => {
        // An extra request on the first one's connection would wait behind it.
        const number = extra ? Math.max(attempt, 2) : attempt;
        const remaining = Math.max(1, Math.round(end - performance.now()));
        return send({ attempt: number, deadline: remaining, signal }, extra);
      };
      return streamed ? hedge.watch(length, begin) : hedge.race(length, begin);
    });
    this.#patientFrom = 0;
    return bytes;
  }

  #fetch(range: BlobRange, sending: Sending, check?: RangeCheck): Promise<Uint8Array> {
    return this.repository.options.exchange({ ...this.#request(range), ...sending }, async (response) => {
      const bytes = await this.#receive(response, range);
      await check?.(bytes);
      return bytes;
    });
  }

  #open(range: BlobRange, sending: Sending): Promise<Answer> {
    return this.repository.options.exchange({ ...this.#request(range), ...sending }, async (response) => {
      if (response.status === 200) {
        return { response, chunks: only(await this.#sliceOfWhole(response, range)) };
      }
      await checkPartial(response, range);
      return { response, chunks: response.stream() };
    });
  }

  #request({ digest, offset, length }: BlobRange): HttpRequest {
    return ranged(this.repository.blobRequest(digest), offset, length);
  }

  async #receive(response: HttpResponse, range: BlobRange): Promise<Uint8Array> {
    if (response.status === 200) return this.#sliceOfWhole(response, range);
    await checkPartial(response, range);
    const { length } = range;
    const bytes = await response.bytes(length);
    if (bytes.length === length) return bytes;
    throw response.error("E_REGISTRY", `the answer has ${bytes.length} of ${length} bytes`, {
      transient: true,
    });
  }

  async #sliceOfWhole(response: HttpResponse, { digest, offset, length }: BlobRange): Promise<Uint8Array> {
    if (!(Number(response.header("content-length")) <= WHOLE_BLOB_LIMIT)) {
      response.discard();
      throw response.error(
        "E_REGISTRY",
        "the registry ignores Range requests, so the image cannot be read lazily",
        { transient: true, dubious: true },
      );
    }
    const bytes = await response.bytes(WHOLE_BLOB_LIMIT);
    verifyDigest(bytes, digest, `blob ${digest} of ${this.repository.name}`);
    if (offset + length > bytes.length) {
      throw response.error("E_REGISTRY", `the range ends beyond the blob's ${bytes.length} bytes`);
    }
    return bytes.subarray(offset, offset + length);
  }
}

function checkNumbers(digest: string, offset: number, length: number): void {
  if (Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0) return;
  throw new OverlaybdError("E_USAGE", `blob ${digest}: [${offset}, +${length}) is not a range`);
}

async function checkPartial(response: HttpResponse, { offset, length, size }: BlobRange): Promise<void> {
  if (response.status !== 206) throw await response.unexpected();
  checkContentRange(response, offset, length, size);
}

async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array, void> {
  yield bytes;
}

/** The request for a part of what `request` asks for. */
export function ranged(request: HttpRequest, offset: number, length: number): HttpRequest {
  const last = offset + length - 1;
  return {
    ...request,
    headers: { ...request.headers, range: `bytes=${offset}-${last}` },
    subject: `${request.subject} bytes ${offset}-${last}`,
  };
}

/**
 * @param size what the blob's size should be, if known
 * @throws RequestError E_REGISTRY unless the answer holds exactly the bytes asked for (RFC 9110 section 14.4), E_CORRUPT
 * when the whole has another size
 */
export function checkContentRange(
  response: HttpResponse,
  offset: number,
  length: number,
  size?: number,
): void {
  const last = offset + length - 1;
  const field = response.header("content-range") ?? "";
  const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(field);
  if (match === null || Number(match[1]) !== offset || Number(match[2]) !== last) {
    response.discard();
    const got = field === "" ? "no Content-Range" : `Content-Range ${quote(field)}`;
    throw response.error("E_REGISTRY", `asked for bytes ${offset}-${last}, answered with ${got}`, {
      transient: true,
      dubious: true,
    });
  }
  if (size !== undefined && match[3] !== "*" && Number(match[3]) !== size) {
    response.discard();
    throw response.error("E_CORRUPT", `has ${match[3]} bytes, not the ${size} it should have`);
  }
}
