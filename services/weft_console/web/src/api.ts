/** Talks to the console's backend: JSON over HTTP, and server-sent events for what changes. */

/** An answer other than success, in the backend's own words. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

const listeners = new Set<() => void>();

/** Calls back whenever the backend says that nobody is signed in. */
export function onSignedOut(callback: () => void): () => void {
  listeners.add(callback);
  return () => listeners.delete(callback);
}

async function ask(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (method !== "GET") headers["X-Weft-Console"] = "1";
  if (body !== undefined) headers["Content-Type"] = body instanceof Blob ? body.type : "application/json";
  let response: Response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? null : body instanceof Blob ? body : JSON.stringify(body), signal: signal ?? null });
  } catch {
    throw new ApiError(0, "UNREACHABLE", "The console does not answer. Check that it still runs, then try again.");
  }
  if (response.ok) return response;
  if (response.status === 401 && path !== "/api/session") listeners.forEach((callback) => callback());
  let problem: { code?: string; detail?: string };
  try {
    problem = (await response.json()) as typeof problem;
  } catch {
    problem = {};
  }
  throw new ApiError(response.status, problem.code ?? "UNKNOWN", problem.detail ?? `The console answered ${response.status}.`);
}

/** `signal` breaks off what is overtaken; then the answer is no answer. */
export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await ask("GET", path, undefined, signal)).json() as Promise<T>;
}

export async function post<T>(path: string, body: unknown = {}, signal?: AbortSignal): Promise<T> {
  return (await ask("POST", path, body, signal)).json() as Promise<T>;
}

export async function remove<T>(path: string): Promise<T> {
  return (await ask("DELETE", path)).json() as Promise<T>;
}

/**
 * Follows a stream of events until `end`. Each event's name picks its handler. A lost connection is taken up again;
 * `problem` events and a stream that cannot be opened end it. Returns what stops it.
 */
export function follow(path: string, handlers: Record<string, (data: unknown) => void>, onProblem: (message: string) => void): () => void {
  const source = new EventSource(path);
  const names = Object.keys(handlers);
  for (const name of names) {
    source.addEventListener(name, (event) => handlers[name]!(JSON.parse((event as MessageEvent<string>).data)));
  }
  source.addEventListener("problem", (event) => {
    onProblem((JSON.parse((event as MessageEvent<string>).data) as { detail: string }).detail);
    source.close();
  });
  source.addEventListener("end", () => source.close());
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) onProblem("The live connection could not be opened. Load the page again.");
  });
  return () => source.close();
}
