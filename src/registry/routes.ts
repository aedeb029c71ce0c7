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

/** Milliseconds without an answer that tell against a route, also when somebody else's answer came first. */
const SILENT_MS = 5_000;

/**
 * Tries the routes that serve a request until one has given an answer that could be used: in their order, second attempts
 * from the second on, those that failed lately last. The last of `routes` is the authority: when it refuses for good, nobody
 * else is asked any more.
 * @param warn told when a route begins to be avoided
 */
export function fallBack(routes: readonly Route[], warn: (message: string) => void): Exchange {
  const avoid = ({ name, health }: Route, error: Error) => {
    const rest = health.failed();
    if (rest !== undefined) warn(`${name} is avoided for ${rest / 1000} s: ${error.message}`);
  };
  /** What a failure says of a route that is not the authority. */
  const judge = (route: Route, error: OverlaybdError, aborted: boolean, silence: number) => {
    // A mirror need not have everything.
    if (error.code === "E_NOT_FOUND") route.health.succeeded();
    else if (aborted && silence < SILENT_MS) route.health.abandoned();
    else avoid(route, error);
  };

  return async (request, consume) => {
    const able = routes.filter((route) => route.serves(request));
    const authority = able.at(-1);
    if (authority === undefined) {
      const complaint = "hosts.toml names no host that may be asked for it";
      throw new OverlaybdError("E_CONFIG", `${request.subject}: ${complaint}`);
    }
    const first = ((request.attempt ?? 1) - 1) % able.length;
    const queue = [...able.slice(first), ...able.slice(0, first)];
    let verdict: unknown;
    for (let i = 0; i < queue.length; i++) {
      const route = queue[i];
      if (i < able.length && route !== authority && !route.health.admit()) {
        queue.push(route);
        continue;
      }
      const begin = performance.now();
      try {
        await route.health.reach();
        const response = await route.send(request);
        if (route !== authority) {
          response.onBreak = (error) => {
            if (!request.signal?.aborted) avoid(route, error);
          };
        }
        const result = await consume(response);
        route.health.succeeded();
        return result;
      } catch (error) {
        if (!(error instanceof OverlaybdError)) throw error;
        const aborted = request.signal?.aborted === true;
        if (route !== authority) judge(route, error, aborted, performance.now() - begin);
        if (aborted) throw error;
        if (route !== authority) continue;
        verdict = error;
        if (!(error instanceof RequestError && error.details.transient)) break;
      }
    }
    throw verdict;
  };
}
