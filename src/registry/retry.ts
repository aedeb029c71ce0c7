/** Repeats an exchange whose failure may pass: overload, restarts, lost connections. */
import { RequestError } from "./transport.ts";

export interface RetryPolicy {
  /** Attempts in total. */
  readonly attempts: number;
  /** Milliseconds from the first attempt on within which all others are begun. Absent: only their number counts. */
  readonly deadline?: number;
  /** Pause before the second attempt in milliseconds; doubled each time, with random jitter of up to half of it. */
  readonly pause: number;
  /** Longest of these pauses in milliseconds. */
  readonly longest: number;
  /** Longest pause in milliseconds when the server asks for one (Retry-After). */
  readonly longestAsked: number;
}

/** Wrong answers in a row that are taken: what is broken may be one of several proxies on the way. */
const DUBIOUS_ATTEMPTS = 3;

/** For whoever would rather have an error soon: conversions, and what has not worked yet. */
export const DEFAULT_RETRY: RetryPolicy = { attempts: 5, pause: 100, longest: 20_000, longestAsked: 20_000 };

/**
 * For reads of a mounted disk, where an error is worse than waiting. The pauses are so short that reads go on within a
 * second after a registry has come back, and so long that waiting for it costs it nothing.
 * @param deadline milliseconds
 */
export function persistently(deadline: number): RetryPolicy {
  return { attempts: Number.POSITIVE_INFINITY, deadline, pause: 50, longest: 1000, longestAsked: 20_000 };
}

/**
 * Runs `exchange` until it succeeds, fails for good, or has been tried often or long enough; the last error is thrown.
 * `exchange` is told the number of the attempt, from 1, and the milliseconds it has got.
 */
export async function retry<T>(
  policy: RetryPolicy,
  exchange: (attempt: number, left: number) => Promise<T>,
): Promise<T> {
  const end = performance.now() + (policy.deadline ?? Number.POSITIVE_INFINITY);
  let dubious = 0;
  for (let attempt = 1; ; attempt++) {
    try {
      return await exchange(attempt, end - performance.now());
    } catch (error) {
      if (!isWorthRepeating(error, policy, attempt)) throw error;
      dubious = error.details.dubious ? dubious + 1 : 0;
      if (dubious === DUBIOUS_ATTEMPTS) throw error;
      const pause = pauseAfter(error, policy, attempt);
      if (performance.now() + pause >= end) throw givenUp(error, policy);
      await Bun.sleep(pause);
    }
  }
}

/** Whether there should be another attempt after number `attempt` failed. */
export function isWorthRepeating(
  error: unknown,
  policy: RetryPolicy,
  attempt: number,
): error is RequestError {
  if (!(error instanceof RequestError) || error.details.transient !== true) return false;
  return attempt < policy.attempts;
}

/** Milliseconds to wait after failed attempt number `attempt`. */
export function pauseAfter(error: RequestError, policy: RetryPolicy, attempt: number): number {
  const backoff = Math.min(policy.longest, policy.pause * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2);
  return Math.max(backoff, Math.min(policy.longestAsked, error.details.retryAfter ?? 0));
}

function givenUp(error: RequestError, policy: RetryPolicy): RequestError {
  return error.because(`; given up after ${(policy.deadline ?? 0) / 1000} s`);
}
