/**
 * Where redirects led to: registries hand blobs out from object stores, by URLs that are signed for a limited time. They
 * are used again until they expire, so that a range costs one request and not two.
 */

/** How long a URL that does not say when it expires is used. */
const DEFAULT_LIFETIME_MS = 60_000;
const LONGEST_LIFETIME_MS = 24 * 3600_000;
/** Part of a URL's life in which it is used: the transfer has to begin before the store's clock says that it is over. */
const USED_SHARE = 0.9;
/** Of each host; the one that was resolved first makes room. */
const MOST_URLS = 4096;

export interface ResolvedUrl {
  readonly url: URL;
  /** `performance.now()` from which on it is not used any more. */
  readonly until: number;
}

export class ResolvedUrls {
  readonly #urls = new Map<string, ResolvedUrl>();

  /** Where `from` led to the last time, if that can be used still. */
  get(from: URL): ResolvedUrl | undefined {
    const found = this.#urls.get(from.href);
    if (found === undefined || performance.now() < found.until) return found;
    this.#urls.delete(from.href);
    return undefined;
  }

  /** @param lifetime milliseconds from now, see `lifetimeOf` */
  set(from: URL, url: URL, lifetime: number): void {
    if (lifetime <= 0) return;
    this.#urls.delete(from.href);
    if (this.#urls.size === MOST_URLS) this.#urls.delete(this.#urls.keys().next().value as string);
    this.#urls.set(from.href, { url, until: performance.now() + lifetime });
  }

  /** Forgets `resolved`; one that took its place meanwhile stays. */
  drop(from: URL, resolved: ResolvedUrl): void {
    if (this.#urls.get(from.href) === resolved) this.#urls.delete(from.href);
  }
}

/**
 * Milliseconds for which a signed URL can be used, by what its query says of its expiry.
 * @param now milliseconds since 1970 by the clock of whoever signed it: the Date of the answer that held the URL
 */
export function lifetimeOf(url: URL, now: number): number {
  const expiry = expiryOf(url.searchParams);
  if (Number.isNaN(expiry)) return DEFAULT_LIFETIME_MS;
  return Math.min(LONGEST_LIFETIME_MS, (expiry - now) * USED_SHARE);
}

/** Milliseconds since 1970, or NaN. */
function expiryOf(query: URLSearchParams): number {
  // AWS Signature Version 4 query parameters, and Google Cloud Storage's V4.
  for (const vendor of ["X-Amz", "X-Goog"]) {
    const signed = parseCompactDate(query.get(`${vendor}-Date`) ?? "");
    const seconds = Number(query.get(`${vendor}-Expires`) ?? Number.NaN);
    if (!Number.isNaN(signed + seconds)) return signed + seconds * 1000;
  }
  // Azure shared access signatures: ISO 8601.
  const ending = query.has("sig") ? Date.parse(query.get("se") ?? "") : Number.NaN;
  if (!Number.isNaN(ending)) return ending;
  // AWS Signature Version 2, CloudFront, Google V2, Alibaba OSS; nginx's secure_link as its manual has it.
  for (const name of ["Expires", "expires"]) {
    const seconds = query.get(name) ?? "";
    if (/^\d{9,11}$/.test(seconds)) return Number(seconds) * 1000;
  }
  return Number.NaN;
}

/** "20250131T235959Z" */
function parseCompactDate(text: string): number {
  const match = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(text);
  if (match === null) return Number.NaN;
  const [year, month, ...rest] = match.slice(1).map(Number);
  return Date.UTC(year, month - 1, rest[0], rest[1], rest[2], rest[3]);
}
