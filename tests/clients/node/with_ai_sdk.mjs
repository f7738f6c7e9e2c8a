// The AI SDK's default model of `@ai-sdk/openai`, which speaks the Responses API: texts, streams, objects, errors.
// Run by `tests/clients/test_clients.py` with `node --test`.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const { SERVER_URL, SERVER_KEY, SERVER_MODEL, SERVER_MAX_MODEL_LEN } = process.env;
const openai = createOpenAI({ baseURL: `${SERVER_URL}/v1`, apiKey: SERVER_KEY });
const model = openai(SERVER_MODEL);
// The server keeps nothing: without this the second turn would refer to the first one by its id.
const providerOptions = { openai: { store: false } };
const prompt = 'What is the capital of France?';
const asked = { model, prompt, temperature: 0, maxOutputTokens: 40, maxRetries: 0, providerOptions };

test('a question is answered', async () => {
  const { text, finishReason, usage, warnings } = await generateText(asked);
  assert.match(text, /Paris/);
  assert.equal(finishReason, 'stop');
  assert.ok(usage.inputTokens > 1 && usage.outputTokens > 1);
  assert.equal(usage.cachedInputTokens >= 0, true);
  assert.deepEqual(warnings ?? [], []);
});

test('a stream says the same', async () => {
  const whole = await generateText(asked);
  const result = streamText(asked);
  let text = '';
  for await (const piece of result.textStream) text += piece;
  assert.equal(text, whole.text);
  assert.equal(await result.finishReason, 'stop');
  assert.equal((await result.usage).outputTokens, whole.usage.outputTokens);
});

test('an answer that is cut says so', async () => {
  const { finishReason } = await generateText({ ...asked, maxOutputTokens: 2 });
  assert.equal(finishReason, 'length');
  const streamed = streamText({ ...asked, maxOutputTokens: 2 });
  await streamed.consumeStream();
  assert.equal(await streamed.finishReason, 'length');
});

test('a dialogue goes on with what was answered', async () => {
  const { response, usage } = await generateText(asked);
  const messages = [{ role: 'user', content: prompt }, ...response.messages, { role: 'user', content: 'And of Italy?' }];
  const { prompt: _, ...rest } = asked;
  const next = await generateText({ ...rest, system: 'You are brief.', messages });
  assert.ok(next.usage.inputTokens > usage.inputTokens);
  assert.ok(next.text);
});

test('a second turn that refers to the first is refused with the reason', async () => {
  const { prompt: _, providerOptions: __, ...rest } = asked;
  const { response } = await generateText({ ...rest, prompt });
  const messages = [{ role: 'user', content: prompt }, ...response.messages, { role: 'user', content: 'And of Italy?' }];
  await assert.rejects(
    generateText({ ...rest, messages }),
    (error) => APICallError.isInstance(error) && error.statusCode === 400 && /keeps nothing/.test(error.message),
  );
});

test('an object is made by its schema', async () => {
  const output = Output.object({ schema: z.object({ city: z.string().max(40), inhabitants: z.number().int() }) });
  const { output: made } = await generateText({ ...asked, maxOutputTokens: 200, output });
  assert.equal(typeof made.city, 'string');
  assert.ok(Number.isInteger(made.inhabitants));
  const streamed = streamText({ ...asked, maxOutputTokens: 200, output });
  for await (const part of streamed.partialOutputStream) assert.equal(typeof part, 'object');
  assert.deepEqual(await streamed.output, made);
});

test('a tool is called, and its answer taken, in steps', async () => {
  const tools = {
    weather: tool({
      description: 'Tells the weather of a city.',
      inputSchema: z.object({ city: z.string().max(40) }),
      execute: async ({ city }) => `It rains in ${city}.`,
    }),
  };
  const calling = {
    ...asked,
    prompt: 'What is the weather in Paris?',
    maxOutputTokens: 200,
    providerOptions: { openai: { store: false, parallelToolCalls: false } },
    tools,
    // Called for in the first step alone: in the second the model speaks.
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
    stopWhen: stepCountIs(2),
  };
  const { steps } = await generateText(calling);
  assert.equal(steps.length, 2);
  assert.equal(steps[0].finishReason, 'tool-calls');
  assert.equal(steps[0].toolCalls[0].toolName, 'weather');
  assert.match(steps[0].toolResults[0].output, /It rains/);
  assert.ok(steps[1].usage.inputTokens > 1);

  const streamed = streamText(calling);
  await streamed.consumeStream();
  assert.deepEqual((await streamed.steps)[0].toolCalls[0].input, steps[0].toolCalls[0].input);
});

test('errors are told, before a stream and in it', async () => {
  await assert.rejects(
    generateText({ ...asked, temperature: 5 }),
    (error) => APICallError.isInstance(error) && error.statusCode === 400 && /temperature/.test(error.message),
  );
  const long = 'one two three four '.repeat(Number(SERVER_MAX_MODEL_LEN));
  const failures = [];
  const streamed = streamText({ ...asked, prompt: long, onError: ({ error }) => failures.push(error) });
  await streamed.consumeStream();
  assert.equal(failures.length, 1);
  assert.match(String(failures[0].message ?? failures[0]), /maximum context length/);
});
