/**
 * Follows redirects (RFC 9110 section 15.4), which registries use to hand blobs out from object stores. The layers
 * below decide by the URL of each request whether it gets credentials, so a foreign origin never sees any.
 */
import type { HttpRequest, HttpResponse, Transport } from "./transport.ts";

const MOST_REDIRECTS = 10;

export function followRedirects(next: Transport): Transport {
  return async (request) => {
    let current = request;
    for (let hops = 0; ; hops++) {
      const response = await next(current);
      const location = response.header("location");
      if (!isRedirect(response.status) || location === undefined) return response;
      response.discard();
      if (hops === MOST_REDIRECTS)
        throw response.error("E_REGISTRY", `more than ${MOST_REDIRECTS} redirects`);
      current = redirected(current, response, location);
    }
  };
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308;
}

function redirected(request: HttpRequest, response: HttpResponse, location: string): HttpRequest {
  const reading = request.method === "GET" || request.method === "HEAD";
  if (!reading && response.status !== 307 && response.status !== 308) {
    throw response.error(
      "E_REGISTRY",
      `a ${request.method} cannot follow a redirect with status ${response.status}`,
    );
  }
  return { ...request, url: resolveLocation(response, location) };
}

/**
 * The URL a Location field names, which may be relative.
 * @throws RequestError E_REGISTRY when it is malformed, not HTTP, or leaves TLS
 */
export function resolveLocation(response: HttpResponse, location: string): URL {
  const from = response.request.url;
  const to = URL.parse(location, from.href);
  if (to === null || (to.protocol !== "https:" && to.protocol !== "http:")) {
    throw response.error("E_REGISTRY", "the answer's Location is not an HTTP URL");
  }
  if (from.protocol === "https:" && to.protocol === "http:") {
    throw response.error("E_REGISTRY", `the answer's Location leaves TLS for ${to.origin}`);
  }
  // User info would become an Authorization field that was never ours to send.
  to.username = "";
  to.password = "";
  to.hash = "";
  return to;
}
