"""POST /v1/responses: OpenAI's Responses API, of which nothing is kept between requests."""
