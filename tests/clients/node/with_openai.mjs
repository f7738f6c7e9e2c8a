// `openai` on Node: chat, streams and errors. Run by `tests/clients/test_clients.py` with `node --test`.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const { SERVER_URL, SERVER_KEY, SERVER_MODEL, SERVER_MAX_MODEL_LEN } = process.env;
const baseURL = `${SERVER_URL}/v1`;
const client = new OpenAI({ baseURL, apiKey: SERVER_KEY, maxRetries: 0 });
const question = { role: 'user', content: 'What is the capital of France?' };
const asked = { model: SERVER_MODEL, messages: [question], temperature: 0, max_tokens: 20 };
const prompted = { model: SERVER_MODEL, prompt: 'Colours of the rainbow: red,', temperature: 0, max_tokens: 5 };

async function textOf(stream, read) {
  let text = '';
  for await (const chunk of stream) text += chunk.choices[0] ? (read(chunk.choices[0]) ?? '') : '';
  return text;
}

test('chat is answered, streamed and not', async () => {
  const answer = await client.chat.completions.create(asked);
  const text = answer.choices[0].message.content;
  assert.match(text, /Paris/);
  assert.ok(answer._request_id);
  const stream = await client.chat.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  });
  assert.equal(await textOf(stream, (choice) => choice.delta.content), text);
});

test('the stream helper puts the answer together', async () => {
  const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
  assert.match(await stream.finalContent(), /Paris/);
  assert.ok((await stream.totalUsage()).completion_tokens > 1);
});

test('a message is taken back as it came', async () => {
  const { message } = (await client.chat.completions.create(asked)).choices[0];
  const messages = [question, message, { role: 'user', content: 'And of Italy?' }];
  assert.ok((await client.chat.completions.create({ ...asked, messages })).choices[0].message.content);
});

test('completions, their stream and their log probabilities', async () => {
  const answer = await client.completions.create({ ...prompted, logprobs: 2 });
  const { text, logprobs } = answer.choices[0];
  assert.equal(logprobs.tokens.join(''), text);
  const stream = await client.completions.create({ ...prompted, stream: true });
  assert.equal(await textOf(stream, (choice) => choice.text), text);
});

test('log probabilities of chat', async () => {
  const answer = await client.chat.completions.create({ ...asked, max_tokens: 3, logprobs: true, top_logprobs: 2 });
  assert.equal(answer.choices[0].logprobs.content.length, 3);
});

test('a stream can be aborted, and the next request is answered', async () => {
  const stream = await client.chat.completions.create({ ...asked, max_tokens: 400, stream: true });
  for await (const _ of stream) break;
  assert.ok((await client.chat.completions.create(asked)).choices.length);
});

test('models are listed and retrieved', async () => {
  const { data } = await client.models.list();
  assert.deepEqual(data.map((model) => model.id), [SERVER_MODEL]);
  assert.equal((await client.models.retrieve(SERVER_MODEL)).id, SERVER_MODEL);
});

test('errors are of the right classes', async () => {
  const stranger = new OpenAI({ baseURL, apiKey: 'sk-wrong', maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  await assert.rejects(client.chat.completions.create({ ...asked, model: 'unknown' }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...asked, temperature: 5 }), OpenAI.BadRequestError);
  const long = 'one two three four '.repeat(Number(SERVER_MAX_MODEL_LEN));
  await assert.rejects(
    client.chat.completions.create({ ...asked, messages: [{ role: 'user', content: long }], stream: true }),
    (error) => error instanceof OpenAI.BadRequestError && error.code === 'context_length_exceeded',
  );
});
