/** Repeats an exchange whose failure may pass: overload, restarts, lost connections. */
import { RequestError } from "./transport.ts";

export interface RetryPolicy {
  /** Attempts in total. */
  readonly attempts: number;
  /** Pause before the second attempt in milliseconds; doubled each time, with random jitter of up to half of it. */
  readonly pause: number;
  /** Longest pause in milliseconds, also when the server asks for more. */
  readonly longest: number;
}

export const DEFAULT_RETRY: RetryPolicy = { attempts: 5, pause: 100, longest: 20_000 };

/**
 * Runs `exchange` (which is told the number of the attempt, from 1) until it succeeds, fails for good, or has been
 * tried often enough; the last error is thrown.
 */
export async function retry<T>(policy: RetryPolicy, exchange: (attempt: number) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await exchange(attempt);
    } catch (error) {
      if (attempt >= policy.attempts || !isTransient(error)) throw error;
      await Bun.sleep(pauseAfter(error, policy, attempt));
    }
  }
}

export function isTransient(error: unknown): error is RequestError {
  return error instanceof RequestError && error.details.transient === true;
}

/** Milliseconds to wait after failed attempt number `attempt`. */
export function pauseAfter(error: RequestError, policy: RetryPolicy, attempt: number): number {
  const backoff = policy.pause * 2 ** (attempt - 1) * (0.5 + Math.random() / 2);
  return Math.min(policy.longest, Math.max(backoff, error.details.retryAfter ?? 0));
}
