/** Pushing blobs to a remote registry: monolithic, chunked with resume, and cross-repository mount. */
import { OverlaybdError } from "../error.ts";
import type { RemoteRepository } from "./client.ts";
import type { Descriptor } from "./descriptor.ts";
import { splitDigest } from "./digest.ts";
import { resolveLocation } from "./redirect.ts";
import { type BlobContent, type BlobUpload, openContent } from "./repository.ts";
import { isWorthRepeating, pauseAfter, retry } from "./retry.ts";
import { type HttpRequest, type HttpResponse, quote } from "./transport.ts";

const DEFAULT_CHUNK_BYTES = 16 * 1024 * 1024;
/** Larger minimum chunks than this are not buffered. */
const MOST_CHUNK_BYTES = 256 * 1024 * 1024;
const OCTETS = "application/octet-stream";

/** POST, then one PUT with all of the content, streamed. A failed PUT ends its session, so both are repeated. */
export async function pushWhole(
  repository: RemoteRepository,
  { digest, size }: Pick<Descriptor, "digest" | "size">,
  content: BlobContent,
): Promise<void> {
  const send = repository.options.transport;
  await retry(repository.policy, async (attempt) => {
    const session = await openSession(await send({ ...openRequest(repository, `blob ${digest}`), attempt }));
    const response = await send({
      method: "PUT",
      url: withDigest(session.url, digest),
      headers: { "content-type": OCTETS, "content-length": String(size) },
      // An empty stream would be sent chunked, which some registries refuse.
      body: size === 0 ? async () => new Uint8Array() : () => openContent(content, { digest, size }),
      subject: `upload of blob ${digest}`,
      scopes: [repository.scope("pull,push")],
      patience: repository.options.commit,
      attempt,
    });
    await expectCommitted(response, digest);
  });
}

/** @returns false when the registry opened an upload instead, which is then cancelled */
export async function mountBlob(
  repository: RemoteRepository,
  digest: string,
  from: string,
): Promise<boolean> {
  splitDigest(digest);
  const request = openRequest(repository, `mount of blob ${digest} from ${from}`);
  request.url.searchParams.set("mount", digest);
  request.url.searchParams.set("from", from);
  const scopes = [repository.scope("pull,push"), `repository:${from}:pull`];
  const opened = await repository.exchange({ ...request, scopes }, async (response) => {
    if (response.status === 201) return response.discard();
    return openSession(response);
  });
  if (opened !== undefined) await cancel(repository, opened.url);
  return opened === undefined;
}

/** A chunked upload: buffers up to one chunk, resumes where the registry says it is. */
export class RemoteUpload implements BlobUpload {
  /** Bytes the registry has confirmed. */
  #offset = 0;
  #url: URL;
  #buffer: Uint8Array;
  #buffered = 0;

  private constructor(
    readonly repository: RemoteRepository,
    session: Session,
    chunkBytes: number,
  ) {
    this.#url = session.url;
    this.#buffer = new Uint8Array(Math.max(chunkBytes, session.minimum));
  }

  static async open(repository: RemoteRepository, chunkBytes = DEFAULT_CHUNK_BYTES): Promise<RemoteUpload> {
    const session = await repository.exchange(openRequest(repository, "upload of a blob"), openSession);
    return new RemoteUpload(repository, session, chunkBytes);
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let taken = 0; taken < bytes.length; ) {
      const part = bytes.subarray(taken, taken + this.#buffer.length - this.#buffered);
      this.#buffer.set(part, this.#buffered);
      this.#buffered += part.length;
      taken += part.length;
      if (this.#buffered === this.#buffer.length) await this.#flush();
    }
  }

  async commit(digest: string): Promise<void> {
    if (this.#buffered > 0) await this.#flush();
    const request: HttpRequest = {
      ...this.#request("PUT", `upload of blob ${digest}`),
      url: withDigest(this.#url, digest),
      headers: { "content-type": OCTETS, "content-length": "0" },
      patience: this.repository.options.commit,
    };
    try {
      await this.repository.exchange(request, (response) => expectCommitted(response, digest));
    } catch (error) {
      // The answer to a PUT that was carried out may have been lost; the session is gone then.
      if (!(await this.repository.hasBlob(digest).catch(() => false))) throw error;
    }
  }

  abort(): Promise<void> {
    return cancel(this.repository, this.#url);
  }

  /** Sends the buffer. After a failure the registry is asked how much of it has arrived. */
  async #flush(): Promise<void> {
    const start = this.#offset;
    const end = start + this.#buffered;
    for (let attempt = 1; this.#offset < end; attempt++) {
      const part = this.#buffer.subarray(this.#offset - start, this.#buffered);
      try {
        await this.#patch(part, attempt);
      } catch (error) {
        const { policy } = this.repository;
        if (!isWorthRepeating(error, policy, attempt)) throw error;
        await Bun.sleep(pauseAfter(error, policy, attempt));
        await this.#askOffset(start, end);
      }
    }
    this.#buffered = 0;
  }

  async #patch(part: Uint8Array, attempt: number): Promise<void> {
    const last = this.#offset + part.length - 1;
    const response = await this.repository.options.transport({
      ...this.#request("PATCH", `upload of blob bytes ${this.#offset}-${last}`),
      headers: {
        "content-type": OCTETS,
        "content-length": String(part.length),
        "content-range": `${this.#offset}-${last}`,
      },
      body: async () => part,
      patience: this.repository.options.commit,
      attempt,
    });
    if (response.status !== 202) throw await response.unexpected();
    this.#advance(response, this.#offset, last + 1, last + 1);
  }

  async #askOffset(start: number, end: number): Promise<void> {
    await this.repository.exchange(this.#request("GET", "upload of a blob"), async (response) => {
      if (response.status !== 204) throw await response.unexpected();
      this.#advance(response, start, end, start);
    });
  }

  /**
   * Takes over the session's new URL and its position, which has to be within what has been sent.
   * @param silent position when the answer names none
   */
  #advance(response: HttpResponse, least: number, most: number, silent: number): void {
    response.discard();
    const range = response.header("range");
    const match = /^(?:bytes=)?0-(\d+)$/.exec(range ?? "");
    // "0-0" is also what registries say of an upload that has nothing yet.
    const said =
      match === null ? undefined : match[1] === "0" && least === 0 && most > 1 ? 0 : Number(match[1]) + 1;
    const offset = said ?? (range === undefined ? silent : Number.NaN);
    if (!(offset >= least && offset <= most)) {
      throw response.error(
        "E_REGISTRY",
        `the upload's Range ${quote(range ?? "")} is not within what was sent`,
      );
    }
    this.#offset = offset;
    const location = response.header("location");
    if (location !== undefined) this.#url = resolveLocation(response, location);
  }

  #request(method: string, subject: string): HttpRequest {
    return { method, url: this.#url, subject, scopes: [this.repository.scope("pull,push")] };
  }
}

interface Session {
  readonly url: URL;
  /** Smallest chunk in bytes the registry takes, except for the last. */
  readonly minimum: number;
}

function openRequest(repository: RemoteRepository, subject: string): HttpRequest {
  return {
    method: "POST",
    url: repository.url("blobs/uploads/"),
    headers: { "content-length": "0" },
    subject,
    scopes: [repository.scope("pull,push")],
    deadline: repository.options.deadline,
  };
}

async function openSession(response: HttpResponse): Promise<Session> {
  if (response.status !== 202) throw await response.unexpected();
  response.discard();
  const location = response.header("location");
  if (location === undefined)
    throw response.error("E_REGISTRY", "the registry opened an upload without a Location");
  const minimum = Number(response.header("oci-chunk-min-length") ?? 0);
  if (!(minimum >= 0 && minimum <= MOST_CHUNK_BYTES)) {
    throw response.error("E_REGISTRY", `the registry wants chunks of more than ${MOST_CHUNK_BYTES} bytes`);
  }
  return { url: resolveLocation(response, location), minimum };
}

async function expectCommitted(response: HttpResponse, digest: string): Promise<void> {
  if (response.status !== 201 && response.status !== 204) throw await response.unexpected();
  response.discard();
  const stored = response.header("docker-content-digest") ?? digest;
  if (stored !== digest) {
    throw new OverlaybdError(
      "E_CORRUPT",
      `upload of blob ${digest}: the registry stored it as ${quote(stored)}`,
    );
  }
}

/** Best effort: registries drop abandoned sessions by themselves. */
async function cancel(repository: RemoteRepository, url: URL): Promise<void> {
  const request = {
    method: "DELETE",
    url,
    subject: "upload of a blob",
    scopes: [repository.scope("pull,push")],
  };
  const sent = repository.options.transport({ ...request, deadline: repository.options.deadline });
  await sent.then((response) => response.discard()).catch(() => {});
}

// Location may have a query of its own, which has to be kept; URLSearchParams would respell it.
function withDigest(session: URL, digest: string): URL {
  const url = new URL(session);
  url.search = `${url.search === "" ? "?" : `${url.search}&`}digest=${encodeURIComponent(digest)}`;
  return url;
}
