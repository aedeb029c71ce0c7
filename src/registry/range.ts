/**
 * Reading ranges of blobs. Somebody's read(2) waits for each, so they are hedged, and what may pass is tried again for
 * as long as the read deadline allows.
 */
import { OverlaybdError } from "../error.ts";
import type { RemoteRepository } from "./client.ts";
import { verifyDigest } from "./digest.ts";
import type { RangeCheck } from "./repository.ts";
import { retry } from "./retry.ts";
import { type HttpRequest, type HttpResponse, quote, SLOWEST_RATE } from "./transport.ts";

/** A blob up to this size is read as a whole from a registry that ignores Range. */
const WHOLE_BLOB_LIMIT = 8 * 1024 * 1024;

/** Milliseconds for which an image is taken to be only just being opened. */
const OPENING_MS = 30_000;

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
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0) {
      throw new OverlaybdError("E_USAGE", `blob ${digest}: [${offset}, +${length}) is not a range`);
    }
    if (length === 0) return new Uint8Array();
    const { exchange, deadline, hedge, reading } = this.repository.options;
    const request = ranged(this.repository.blobRequest(digest), offset, length);
    const patient = performance.now() >= this.#patientFrom;
    const policy = (patient ? reading : undefined) ?? this.repository.policy;
    const bytes = await retry(policy, (attempt, left) => {
      // For all requests of the attempt together.
      const end = performance.now() + Math.min(deadline + length / SLOWEST_RATE, left);
      return hedge.race(length, async (signal, extra) => {
        // An extra request on the first one's connection would wait behind it.
        const number = extra ? Math.max(attempt, 2) : attempt;
        const remaining = Math.max(1, Math.round(end - performance.now()));
        const sent = { ...request, attempt: number, deadline: remaining, signal };
        return exchange(sent, async (response) => {
          const bytes = await this.#receive(response, digest, offset, length, size);
          await check?.(bytes);
          return bytes;
        });
      });
    });
    this.#patientFrom = 0;
    return bytes;
  }

  async #receive(
    response: HttpResponse,
    digest: string,
    offset: number,
    length: number,
    size: number | undefined,
  ): Promise<Uint8Array> {
    if (response.status === 200) return this.#sliceOfWhole(response, digest, offset, length);
    if (response.status !== 206) throw await response.unexpected();
    checkContentRange(response, offset, length, size);
    const bytes = await response.bytes(length);
    if (bytes.length === length) return bytes;
    throw response.error("E_REGISTRY", `the answer has ${bytes.length} of ${length} bytes`, {
      transient: true,
    });
  }

  async #sliceOfWhole(
    response: HttpResponse,
    digest: string,
    offset: number,
    length: number,
  ): Promise<Uint8Array> {
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
