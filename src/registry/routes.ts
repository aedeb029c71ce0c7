/** The ways to a registry's content, in order: through an accelerator, from mirrors, and at last from the registry itself. */
import { OverlaybdError } from "../error.ts";
import type { Health } from "./health.ts";
import { type HttpRequest, type HttpResponse, RequestError, type Transport } from "./transport.ts";

/** Sends a request and makes something of the answer. */
export type Exchange = <T>(
  request: HttpRequest,
  consume: (response: HttpResponse) => Promise<T>,
) => Promise<T>;

export interface Route {
  /** What to call it in a warning. */
  readonly name: string;
  readonly health: Health;
  /** Whether requests of this kind may take it. */
  serves(request: HttpRequest): boolean;
  readonly send: Transport;
}

/**
 * Tries the routes that serve a request in their order until one has given an answer that could be used. Those that failed
 * lately come last. The last of `routes` is the authority: when it refuses for good, nobody else is asked any more.
 * @param warn told when a route begins to be avoided
 */
export function fallBack(routes: readonly Route[], warn: (message: string) => void): Exchange {
  const avoid = ({ name, health }: Route, error: Error) => {
    const rest = health.failed();
    if (rest !== undefined) warn(`${name} is avoided for ${rest / 1000} s: ${error.message}`);
  };

  return async (request, consume) => {
    const able = routes.filter((route) => route.serves(request));
    const authority = able.at(-1);
    if (authority === undefined) {
      throw new OverlaybdError(
        "E_CONFIG",
        `${request.subject}: hosts.toml names no host that may be asked for it`,
      );
    }
    const resting = able.filter((route) => route !== authority && route.health.resting);
    const order = [...able.filter((route) => !resting.includes(route)), ...resting];
    let verdict: { readonly error: unknown } | undefined;
    for (const route of order) {
      try {
        await route.health.reach();
        const response = await route.send(request);
        if (route !== authority) response.onBreak = (error) => avoid(route, error);
        const result = await consume(response);
        route.health.succeeded();
        return result;
      } catch (error) {
        if (!(error instanceof OverlaybdError)) throw error;
        if (route === authority) {
          verdict = { error };
          if (!(error instanceof RequestError && error.details.transient)) break;
          continue;
        }
        if (request.signal?.aborted) throw error;
        // A mirror need not have everything.
        if (error.code !== "E_NOT_FOUND") avoid(route, error);
      }
    }
    throw verdict?.error;
  };
}
