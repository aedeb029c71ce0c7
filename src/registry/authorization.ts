/**
 * Adds credentials to the requests of one registry: none, Basic, or Bearer tokens from the token service that the
 * registry's challenge names (Docker registry token specification; RFC 6750). Requests to other origins pass unchanged.
 */
import { OverlaybdError } from "../error.ts";
import { type Challenge, parseChallenges } from "./challenge.ts";
import type { Credential, CredentialSource } from "./credentials/source.ts";
import { parseJsonObject } from "./json.ts";
import { describe, type HttpRequest, RequestError, type Transport } from "./transport.ts";

/** What a token service need not say: how long a token lives, in seconds (token specification). */
const DEFAULT_LIFETIME = 60;
/** A token is renewed when less than this share of its life is left. */
const RENEWAL_SHARE = 0.2;
const TOKEN_ANSWER_LIMIT = 256 * 1024;
const TOKEN_DEADLINE_MS = 30_000;
/** OAuth2 client id of a program that has none registered. */
const CLIENT_ID = "overlaybd";

interface Token {
  value: Promise<string>;
  /** `performance.now()` from which on a new one is wanted; infinite while this one is on its way. */
  renewAt: number;
}

/**
 * @param origin scheme, host and port of the registry
 * @param host how credentials know it
 */
export function authorize(
  next: Transport,
  origin: string,
  host: string,
  credentials: CredentialSource,
): Transport {
  let challenges: readonly Challenge[] = [];
  const tokens = new Map<string, Token>();
  /** For Basic, by repository: asking a source for each request would be slow. Kept until refused. */
  const remembered = new Map<string, Promise<Credential | undefined>>();

  /** The Authorization value the last challenge asks for, or undefined: none. */
  async function authorization(request: HttpRequest): Promise<string | undefined> {
    const bearer = challenges.find(
      ({ scheme, parameters }) => scheme === "bearer" && parameters.has("realm"),
    );
    if (bearer !== undefined) return `Bearer ${await cachedToken(bearer, request)}`;
    if (!challenges.some(({ scheme }) => scheme === "basic")) return undefined;
    const credential = await rememberedCredential(request);
    return credential !== undefined && "username" in credential ? basic(credential) : undefined;
  }

  function rememberedCredential(request: HttpRequest): Promise<Credential | undefined> {
    const repository = repositoryOf(request);
    const known = remembered.get(repository);
    if (known !== undefined) return known;
    const asked = credentials(host, repository, request.url);
    remembered.set(repository, asked);
    asked.catch(() => remembered.delete(repository));
    return asked;
  }

  /** One token per set of scopes; whoever wants it while it is fetched waits for the same answer. */
  function cachedToken(challenge: Challenge, request: HttpRequest): Promise<string> {
    const key = scopeKey(request);
    const cached = tokens.get(key);
    if (cached !== undefined && performance.now() < cached.renewAt) return cached.value;
    const fetched = fetchToken(challenge, request);
    const token: Token = { value: fetched.then(({ value }) => value), renewAt: Number.POSITIVE_INFINITY };
    tokens.set(key, token);
    fetched.then(
      ({ renewAt }) => {
        token.renewAt = renewAt;
      },
      () => forget(key, token),
    );
    return token.value;
  }

  function forget(key: string, token: Token | undefined): void {
    if (token !== undefined && tokens.get(key) === token) tokens.delete(key);
  }

  async function fetchToken(
    challenge: Challenge,
    request: HttpRequest,
  ): Promise<{ value: string; renewAt: number }> {
    const credential = await credentials(host, repositoryOf(request), request.url);
    const response = await next(tokenRequest(challenge, request, credential));
    if (response.status !== 200) {
      const error = await response.unexpected();
      if (error.details.transient === true) throw error;
      throw refused(
        request,
        `the token service ${describe(response.request.url)} answered ${response.status}`,
      );
    }
    const answer = parseJsonObject(await response.bytes(TOKEN_ANSWER_LIMIT), "the token service's answer");
    const value = answer.token || answer.access_token;
    // The value becomes a header field: nothing that could end it.
    if (typeof value !== "string" || !/^[\x21-\x7e]+$/.test(value)) {
      throw refused(
        request,
        `the token service ${describe(response.request.url)} answered without a usable token`,
      );
    }
    const seconds = Number(answer.expires_in) > 0 ? Number(answer.expires_in) : DEFAULT_LIFETIME;
    return { value, renewAt: performance.now() + seconds * 1000 * (1 - RENEWAL_SHARE) };
  }

  return async (request) => {
    if (request.url.origin !== origin) return next(request);
    for (let renewed = false; ; renewed = true) {
      const value = await authorization(request);
      const used = tokens.get(scopeKey(request));
      const response = await next(withAuthorization(request, value));
      if (response.status !== 401) return response;
      const field = response.header("www-authenticate");
      response.discard();
      if (field === undefined)
        throw refused(request, "the registry answered 401 without saying what it wants");
      challenges = parseChallenges(field);
      if (value !== undefined) forget(scopeKey(request), used);
      remembered.delete(repositoryOf(request));
      const known = challenges.some(({ scheme }) => scheme === "bearer" || scheme === "basic");
      if (!known) throw refused(request, "the registry wants neither Basic nor Bearer authorization");
      // Once more with what it asks for: also a token it accepted before may have expired or been revoked.
      if (renewed) throw refused(request, refusal(value));
    }
  };

  function refused(request: HttpRequest, reason: string): RequestError {
    return new RequestError("E_AUTH", reason, { request, status: 401 });
  }
}

function refusal(value: string | undefined): string {
  return value === undefined
    ? "the registry wants a user name and password, and there are none for it"
    : "the registry refused the credentials";
}

function withAuthorization(request: HttpRequest, value: string | undefined): HttpRequest {
  return value === undefined
    ? request
    : { ...request, headers: { ...request.headers, authorization: value } };
}

function basic(credential: { username: string; password: string }): string {
  return `Basic ${Buffer.from(`${credential.username}:${credential.password}`).toString("base64")}`;
}

/** GET with the scopes in the query; for an identity token POST with a refresh grant (OAuth2 token specification). */
function tokenRequest(
  challenge: Challenge,
  request: HttpRequest,
  credential: Credential | undefined,
): HttpRequest {
  const url = URL.parse(challenge.parameters.get("realm") ?? "", request.url.href);
  if (url === null || (url.protocol !== "https:" && url.protocol !== "http:")) {
    throw new RequestError("E_AUTH", "the realm of the registry's challenge is not an HTTP URL", { request });
  }
  if (request.url.protocol === "https:" && url.protocol === "http:") {
    throw new RequestError("E_AUTH", `the registry names a token service without TLS: ${url.origin}`, {
      request,
    });
  }
  const service = challenge.parameters.get("service");
  // Not the challenge's scope: it is that of whichever request met the challenge first.
  const scopes = request.scopes ?? [];
  const shared = { url, subject: request.subject, attempt: request.attempt, deadline: TOKEN_DEADLINE_MS };

  if (credential !== undefined && "identityToken" in credential) {
    const form = new URLSearchParams({
      grant_type: "refresh_token",
      client_id: CLIENT_ID,
      refresh_token: credential.identityToken,
      scope: scopes.join(" "),
    });
    if (service !== undefined) form.set("service", service);
    return {
      ...shared,
      method: "POST",
      headers: { "content-type": "application/x-www-form-urlencoded" },
      body: async () => Buffer.from(form.toString()),
    };
  }
  if (service !== undefined) url.searchParams.set("service", service);
  for (const scope of scopes) url.searchParams.append("scope", scope);
  return withAuthorization({ ...shared, method: "GET" }, credential && basic(credential));
}

function scopeKey(request: HttpRequest): string {
  return [...(request.scopes ?? [])].sort().join(" ");
}

function repositoryOf(request: HttpRequest): string {
  const scope = request.scopes?.[0];
  if (scope === undefined) throw new OverlaybdError("E_USAGE", "a request to a registry needs a scope");
  return scope.slice(scope.indexOf(":") + 1, scope.lastIndexOf(":"));
}
