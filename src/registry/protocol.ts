/** How the embedded registry reads requests and words refusals (OCI distribution-spec 1.1): paths, ranges, pages, errors. */
import { isDigest } from "./digest.ts";
import { isRepositoryName, isTag } from "./reference.ts";

/** Items on a page of a listing, and the most that `n` can ask for. */
const PAGE = 1000;

/** An error answer in the form the specification gives ("Error codes"). */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(message);
  }

  toResponse(): Response {
    const body = { errors: [{ code: this.code, message: this.message }] };
    return Response.json(body, { status: this.status, headers: this.headers });
  }
}

export function notAllowed(): never {
  throw new Refusal(405, "UNSUPPORTED", "this method is not supported here");
}

export interface Route {
  readonly name: string;
  /** "manifests", "blobs", "uploads", "tags" or "referrers" */
  readonly kind: string;
  readonly argument: string;
}

/** Splits `/v2/NAME/KIND/ARGUMENT`; everything that becomes part of a path or name is checked against its grammar. */
export function parseRoute(pathname: string): Route {
  const match =
    /^\/v2\/(?<name>.+)\/(?<kind>manifests|blobs|referrers)\/(?<argument>[^/]+)$/.exec(pathname) ??
    /^\/v2\/(?<name>.+)\/(?<kind>tags)\/list$/.exec(pathname);
  const upload = /^\/v2\/(?<name>.+)\/blobs\/uploads\/?(?<argument>[^/]*)$/.exec(pathname);
  const groups = (upload ?? match)?.groups;
  if (groups === undefined) throw new Refusal(404, "UNSUPPORTED", "no such endpoint");
  const { name, argument: encoded = "" } = groups;
  const kind = upload === null ? groups.kind : "uploads";
  const argument = decode(encoded);
  if (!isRepositoryName(name)) throw new Refusal(400, "NAME_INVALID", "this is not a repository name");
  if ((kind === "blobs" || kind === "referrers") && !isDigest(argument)) {
    throw new Refusal(400, "DIGEST_INVALID", "this is not a digest");
  }
  if (kind === "manifests" && !isDigest(argument) && !isTag(argument)) {
    throw new Refusal(
      argument.includes(":") ? 400 : 404,
      "MANIFEST_UNKNOWN",
      "this is neither a tag nor a digest",
    );
  }
  return { name, kind, argument };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new Refusal(400, "UNSUPPORTED", "the path is not properly encoded");
  }
}

export async function readBody(request: Request, limit: number): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of request.body ?? []) {
    length += chunk.length;
    if (length > limit) throw new Refusal(413, "MANIFEST_INVALID", `a manifest has at most ${limit} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** One range of bytes (RFC 9110 section 14.1.2). Other units and several ranges are ignored, as the RFC allows. */
export function parseRange(field: string | null, size: number): { first: number; end: number } | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(field ?? "");
  if (match === null || (match[1] === "" && match[2] === "")) return undefined;
  const suffix = match[1] === "";
  const first = suffix ? Math.max(0, size - Number(match[2])) : Number(match[1]);
  const end = suffix || match[2] === "" ? size : Math.min(size, Number(match[2]) + 1);
  if (!suffix && match[2] !== "" && Number(match[2]) < first) return undefined;
  if (first >= end) {
    throw new Refusal(416, "SIZE_INVALID", "the range is not within the blob", {
      "content-range": `bytes */${size}`,
    });
  }
  return { first, end };
}

/** `n` and `last` (OCI distribution-spec, "Listing Tags"). */
export function paginate(
  items: readonly string[],
  url: URL,
): { page: string[]; headers: Record<string, string> } {
  const asked = url.searchParams.get("n");
  if (asked !== null && !/^\d{1,9}$/.test(asked)) throw new Refusal(400, "UNSUPPORTED", "n is not a number");
  const count = asked === null ? PAGE : Math.min(PAGE, Number(asked));
  const last = url.searchParams.get("last");
  const rest = last === null ? items : items.filter((item) => item > last);
  const page = rest.slice(0, count);
  if (page.length === 0 || page.length === rest.length) return { page, headers: {} };
  const next = new URLSearchParams({ n: String(count), last: page[page.length - 1] });
  return { page, headers: { link: `<${url.pathname}?${next}>; rel="next"` } };
}
