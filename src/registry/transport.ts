/**
 * One HTTP request, one answer: what everything above is built on and what middle layers (authorization, redirects,
 * later mirrors) wrap. Nothing here retries.
 *
 * Every request is watched: the server has to answer, and bytes have to move in either direction, within a time; small
 * exchanges also have a deadline as a whole. So a peer that accepts and then says nothing, also on a pooled connection
 * that died unnoticed, costs a bounded time.
 */

import { FetchError, type FetchOptions, ofetch } from "ofetch";
import { type ErrorCode, OverlaybdError } from "../error.ts";
import { version } from "../version.ts";
import type { ProxyChoice } from "./proxy.ts";
import { readTls, type TlsOptions } from "./tls.ts";

export interface HttpRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>>;
  /** Opens the body; called again when the request has to be sent again. */
  readonly body?: () => Promise<ReadableStream<Uint8Array> | Uint8Array>;
  /** What is transferred, for errors: "blob sha256:… bytes 0-4095". */
  readonly subject: string;
  /** Token scopes the request needs: "repository:ns/name:pull". */
  readonly scopes?: readonly string[];
  /** Milliseconds for everything including the body of the answer; absent: as long as bytes keep moving. */
  readonly deadline?: number;
  /** Milliseconds to wait for the answer after the request is sent; absent: as for any bytes. */
  readonly patience?: number;
  /** Aborts the request, and the transfer of its answer. */
  readonly signal?: AbortSignal;
  /** May be sent through a peer-to-peer accelerator, if there is one. */
  readonly accelerated?: boolean;
  /** Number of this attempt, from 1. Attempts after the first do not reuse a pooled connection. */
  readonly attempt?: number;
}

export type Transport = (request: HttpRequest) => Promise<HttpResponse>;

export interface TransportOptions {
  readonly tls?: TlsOptions;
  /** Longest time without a byte moving, in milliseconds; default 30 s. */
  readonly stall?: number;
  /** Default: every connection is direct. */
  readonly proxy?: ProxyChoice;
  /** What requests name as their sender; default: this program and its version. */
  readonly userAgent?: string;
  /** Connects to this Unix socket, whatever the URL says. */
  readonly socket?: string;
}

/** Longest time without a byte moving, in milliseconds. */
export const STALL_MS = 30_000;

const USER_AGENT = `overlaybd/${version}`;
/** Bytes per millisecond below which a connection is of no use; bodies that cannot be watched get time accordingly. */
export const SLOWEST_RATE = 64;
/** At most this much of an error answer is read. */
const ERROR_BODY_LIMIT = 64 * 1024;

/** A failed request. `transient`: sending it again may help. */
export class RequestError extends OverlaybdError {
  readonly details: FailureDetails;
  /** Not for showing: its header fields and the query of its URL may be secret. */
  readonly #request: HttpRequest;

  /** @param reason what went wrong, without what was requested, which is added */
  constructor(
    code: ErrorCode,
    readonly reason: string,
    { request, ...details }: FailureDetails & { readonly request: HttpRequest },
  ) {
    const attempt = request.attempt === undefined ? "" : ` (attempt ${request.attempt})`;
    super(code, `${request.subject}: ${request.method} ${describe(request.url)}: ${reason}${attempt}`);
    this.details = details;
    this.#request = request;
  }

  /** The same with more to say about the reason. */
  because(more: string): RequestError {
    return new RequestError(this.code, `${this.reason}${more}`, { ...this.details, request: this.#request });
  }
}

interface FailureDetails {
  readonly status?: number;
  readonly transient?: boolean;
  /** The answer was a wrong one: if it is the same a few times, asking again does not help. */
  readonly dubious?: boolean;
  /** Milliseconds the server asked to wait. */
  readonly retryAfter?: number;
}

/** A URL without what may be secret: user info, and the query, which signs the URLs of object stores. */
export function describe(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

/** ofetch without what would decide for us: every answer is one, and its body is ours to read. */
const RAW = { ignoreResponseError: true, responseType: "stream", retry: false, redirect: "manual" } as const;
/** Options of Bun's `fetch` that ofetch hands through. */
type BunOptions = Pick<BunFetchRequestInit, "session" | "decompress" | "proxy" | "verbose">;

/** Sends requests, without following redirects. @throws OverlaybdError E_CONFIG when a certificate file is unusable */
export async function fetchTransport(options: TransportOptions = {}): Promise<Transport> {
  const { stall = STALL_MS, userAgent = USER_AGENT } = options;
  // A session, since certificates given with each request would be read with each request.
  const session = new Bun.FetchSession({ tls: await readTls(options.tls ?? {}), unix: options.socket });
  return async (request) => {
    const proxy = options.proxy?.(request.url);
    const watch = new Watch(request, stall);
    const patience = request.patience ?? stall;
    try {
      watch.touch(patience);
      const content = await request.body?.();
      const init: FetchOptions<"stream"> & BunOptions = {
        ...RAW,
        method: request.method,
        headers: { "user-agent": userAgent, "accept-encoding": "identity", ...request.headers },
        body: content instanceof ReadableStream ? watched(content, watch, patience) : content,
        signal: watch.signal,
        session,
        // Both stated in full, so that no variable of the environment changes them or prints what is sent.
        proxy: proxy === undefined ? false : { url: proxy, respectNoProxy: false },
        verbose: false,
        decompress: false,
        keepalive: (request.attempt ?? 1) === 1,
      };
      const response = await ofetch.raw(request.url.href, init);
      // From here on only waiting for the next bytes counts, not the time the caller takes to want them.
      watch.pause();
      const answer = new HttpResponse(request, response, watch);
      if (answer.status !== 407 || proxy === undefined) return answer;
      answer.discard();
      throw proxyRefusal(proxy, 407, request);
    } catch (error) {
      const cause = error instanceof FetchError ? error.cause : error;
      throw proxy === undefined ? failure(cause, request, watch) : proxyFailure(proxy, cause, request, watch);
    }
  };
}

/** The answer to a request. Its body has to be consumed by exactly one of `bytes`, `stream` and `discard`. */
export class HttpResponse {
  /** Told when the body breaks off, while it is streamed: the exchange is over for whoever chose the route. */
  onBreak?: (error: Error) => void;

  constructor(
    readonly request: HttpRequest,
    readonly response: Response,
    readonly watch: Watch,
  ) {}

  get status(): number {
    return this.response.status;
  }

  header(name: string): string | undefined {
    return this.response.headers.get(name) ?? undefined;
  }

  /** The whole body. @throws RequestError E_LIMIT when it is longer than `limit` bytes. */
  async bytes(limit: number): Promise<Uint8Array> {
    const announced = Number(this.header("content-length") ?? Number.NaN);
    if (announced <= limit) return this.#bytesAtOnce(announced);
    const chunks: Uint8Array[] = [];
    let length = 0;
    for await (const chunk of this.stream()) {
      length += chunk.byteLength;
      if (length > limit) throw this.error("E_LIMIT", `the answer is longer than ${limit} bytes`);
      chunks.push(chunk);
    }
    return chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
  }

  /** A body of known length, which costs half the time of a stream; in return its progress cannot be watched. */
  async #bytesAtOnce(length: number): Promise<Uint8Array> {
    this.#refuseEncoding();
    this.watch.touch(this.watch.stall + Math.ceil(length / SLOWEST_RATE));
    try {
      return await this.response.bytes();
    } catch (error) {
      throw failure(error, this.request, this.watch);
    } finally {
      this.watch.stop();
    }
  }

  #refuseEncoding(): void {
    const encoding = this.header("content-encoding");
    if (encoding === undefined || encoding === "identity") return;
    this.discard();
    throw this.error(
      "E_REGISTRY",
      `the answer is encoded as ${quote(encoding)} although identity was asked for`,
    );
  }

  /** The body as it arrives. Leaving the loop early closes the connection. */
  async *stream(): AsyncGenerator<Uint8Array, void> {
    this.#refuseEncoding();
    const reader = this.response.body?.getReader();
    let ended = false;
    try {
      while (reader !== undefined) {
        this.watch.touch();
        const { done, value } = await reader.read();
        if (done) break;
        // While the consumer is busy it is not the server that is slow.
        this.watch.pause();
        yield value;
      }
      ended = true;
    } catch (error) {
      const broken = failure(error, this.request, this.watch);
      this.onBreak?.(broken);
      throw broken;
    } finally {
      if (!ended) await reader?.cancel().catch(() => {});
      this.watch.stop();
    }
  }

  /** Drops the body. */
  discard(): void {
    this.watch.stop();
    this.response.body?.cancel().catch(() => {});
  }

  error(
    code: ErrorCode,
    reason: string,
    repeating: { readonly transient?: boolean; readonly dubious?: boolean } = {},
  ): RequestError {
    return new RequestError(code, reason, { request: this.request, status: this.status, ...repeating });
  }

  /** Consumes an answer that is not the one wanted and makes an error of it. */
  async unexpected(): Promise<RequestError> {
    const { status } = this;
    const body = await this.bytes(ERROR_BODY_LIMIT).catch(() => new Uint8Array());
    const retryable = status === 408 || status === 429 || (status >= 500 && !LASTING.has(status));
    const meaning = status === INSUFFICIENT_STORAGE ? ": it has no space left" : "";
    return new RequestError(codeOf(status), `the registry answered ${status}${errorCodes(body)}${meaning}`, {
      request: this.request,
      status,
      transient: retryable,
      retryAfter: parseRetryAfter(this.header("retry-after")),
    });
  }
}

/** RFC 4918 section 11.5 */
const INSUFFICIENT_STORAGE = 507;
/** Errors of a server that repeating a request does not help: not implemented, no such version, no space. */
const LASTING: ReadonlySet<number> = new Set([501, 505, INSUFFICIENT_STORAGE]);

function codeOf(status: number): ErrorCode {
  if (status === 401 || status === 403) return "E_AUTH";
  return status === 404 ? "E_NOT_FOUND" : "E_REGISTRY";
}

/** The codes of an error answer (OCI distribution-spec, "Error codes"). Its free text may quote what was sent. */
function errorCodes(body: Uint8Array): string {
  const codes = Buffer.from(body)
    .toString("latin1")
    .matchAll(/"code"\s*:\s*"([A-Z_]{1,40})"/g);
  const names = [...codes].slice(0, 3).map((match) => match[1]);
  return names.length === 0 ? "" : ` (${names.join(", ")})`;
}

/** Milliseconds of a Retry-After field: seconds or a date (RFC 9110 section 10.2.3). */
function parseRetryAfter(field: string | undefined): number | undefined {
  if (field === undefined) return undefined;
  const milliseconds = /^\d+$/.test(field) ? Number(field) * 1000 : Date.parse(field) - Date.now();
  return Number.isNaN(milliseconds) ? undefined : Math.max(0, milliseconds);
}

/** Quotes text of a stranger for a message. */
export function quote(text: string): string {
  return JSON.stringify(text.slice(0, 80));
}

/** Aborts a request when nothing moves for too long, or when its deadline has passed. */
class Watch {
  readonly #controller = new AbortController();
  #timer: Timer | undefined;
  #deadline: Timer | undefined;
  readonly #cancel = () => this.#abort("not wanted any more");
  /** Why the request was aborted, if it was. */
  reason: string | undefined;

  constructor(
    private readonly request: Pick<HttpRequest, "deadline" | "signal">,
    /** Milliseconds. */
    readonly stall: number,
  ) {
    const { deadline, signal } = request;
    this.limit(deadline);
    if (signal?.aborted) this.#cancel();
    signal?.addEventListener("abort", this.#cancel);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** From now on there are `deadline` milliseconds for everything; absent: as long as bytes keep moving. */
  limit(deadline?: number): void {
    clearTimeout(this.#deadline);
    if (deadline === undefined || this.reason !== undefined) return;
    this.#deadline = setTimeout(() => this.#abort(`not done within ${deadline} ms`), deadline);
  }

  /** Something moved: the next thing has to within `limit` milliseconds. */
  touch(limit = this.stall): void {
    clearTimeout(this.#timer);
    if (this.reason !== undefined) return;
    this.#timer = setTimeout(() => this.#abort(`no bytes moved for ${limit} ms`), limit);
  }

  pause(): void {
    clearTimeout(this.#timer);
  }

  stop(): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#deadline);
    this.request.signal?.removeEventListener("abort", this.#cancel);
  }

  #abort(reason: string): void {
    this.reason = reason;
    this.stop();
    this.#controller.abort(new Error(reason));
  }
}

function watched(
  stream: ReadableStream<Uint8Array>,
  watch: Watch,
  patience: number,
): ReadableStream<Uint8Array> {
  return stream.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        watch.touch();
        controller.enqueue(chunk);
      },
      flush() {
        watch.touch(patience);
      },
    }),
  );
}

const UNTRUSTED = "the server's certificate is not signed by a trusted authority (give it as a root CA)";
/** Causes of failed connections that sending again cannot cure. */
const PERMANENT: Readonly<Record<string, string>> = {
  EPROTO: "TLS failed: the server wants a client certificate, or does not speak TLS (then use --plain)",
  ERR_TLS_CERT_ALTNAME_INVALID: "the server's certificate is for another name",
  DEPTH_ZERO_SELF_SIGNED_CERT: UNTRUSTED,
  SELF_SIGNED_CERT_IN_CHAIN: UNTRUSTED,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNTRUSTED,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNTRUSTED,
  UNABLE_TO_GET_ISSUER_CERT: UNTRUSTED,
  CERT_HAS_EXPIRED: "the server's certificate has expired",
};

/** A failure on the way through a proxy, which is named without its password. */
function proxyFailure(proxy: URL, error: unknown, request: HttpRequest, watch: Watch): Error {
  const { code, message } = error as { code?: unknown; message?: unknown };
  // The only place that tells the status of a refused CONNECT.
  const status = code === "ERR_PROXY_TUNNEL" ? /\b(\d{3})\b/.exec(String(message))?.[1] : undefined;
  if (status !== undefined) {
    watch.stop();
    return proxyRefusal(proxy, Number(status), request);
  }
  const failed = failure(error, request, watch);
  if (!(failed instanceof RequestError) || failed === error) return failed;
  return failed.because(`, through the proxy ${proxy.origin}`);
}

/** 401 is what tinyproxy says to a wrong password. */
function proxyRefusal({ origin }: URL, status: number, request: HttpRequest): RequestError {
  if (status === 407 || status === 401) {
    const reason = `the proxy ${origin} wants a user name and password, or other ones (status ${status})`;
    return new RequestError("E_AUTH", reason, { request, status });
  }
  const transient = status === 429 || status >= 500;
  const reason = `the proxy ${origin} refused the connection (status ${status})`;
  return new RequestError("E_REGISTRY", reason, { request, status, transient });
}

function failure(error: unknown, request: HttpRequest, watch: Watch): Error {
  watch.stop();
  if (error instanceof OverlaybdError) return error;
  if (watch.reason !== undefined) {
    return new RequestError("E_TIMEOUT", watch.reason, { request, transient: true });
  }
  const code = String((error as { code?: unknown })?.code ?? "");
  const permanent = PERMANENT[code];
  const reason = permanent ?? (code === "" ? "the connection failed" : `the connection failed (${code})`);
  // The runtime's own error stays out of it: it holds the whole URL, which may be signed.
  return new RequestError("E_REGISTRY", reason, { request, transient: permanent === undefined });
}
